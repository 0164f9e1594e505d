//! Least privilege: each role may do what its part requires, and nothing else.

use tidings::postgres::schema::{self, SchemaName};
use tokio_postgres::{Client, error::SqlState};

use crate::support::{
    bridge::Bridge,
    database::{Database, start_cluster},
    process, until,
};

/// Each of these must fail with a lack of privileges.
async fn may_not(client: &Client, statements: &[&str]) {
    for statement in statements {
        let refused = client.batch_execute(statement).await;
        let error = refused.expect_err(statement);
        assert_eq!(
            error.code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{statement}: {error:?}"
        );
    }
}

async fn text(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.expect(query).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_sends_and_can_neither_read_nor_forge_nor_take_back() {
    let database = Database::migrated().await;
    let writer = database.connect().await;
    may_not(
        &writer,
        &[
            "select text from notifications",
            "select * from notifications",
            "select user_id from notifications",
            "select ref from notifications",
            "table notifications",
            "copy notifications to stdout",
            "insert into notifications (user_id, text) values ('alice', 'x') returning text",
            "insert into notifications (user_id, text, sent_at) values ('alice', 'x', now())",
            "insert into notifications (user_id, text, xid) values ('alice', 'x', '1')",
            "insert into notifications (user_id, text, created_at) values ('alice', 'x', now())",
            "insert into notifications (id, user_id, text) overriding system value values (7, 'alice', 'x')",
            "update notifications set sent_at = now()",
            "update notifications set text = 'x'",
            "delete from notifications",
            "truncate notifications",
            "alter table notifications disable trigger tidings_ring_doorbell",
            "create trigger mine after insert on notifications \
               execute function tidings_ring_doorbell()",
            "select tidings_pruned_through()",
            "select * from tidings_disconnections_since('1:1:')",
            "select * from tidings_disconnections_page('1', '{}', '{}', 1)",
            "select tidings_prune_disconnections(1)",
            "select * from tidings_pruned",
            "select * from tidings_disconnections",
            "select * from tidings_drained",
            "insert into tidings_reopened values ('1')",
            "insert into tidings_adopted (schema_name, table_name) values ('public', 'x')",
            "delete from tidings_adopted",
            "select tidings_adopt('notifications', 'x:', null)",
            "select tidings_unadopt('public', 'notifications')",
            "select tidings_mark_adopted('public', 'x', null, 1)",
            "insert into topic_subscriptions (user_id, topic) values ('alice', 'x')",
            "update topic_subscriptions set since = '1:1:'",
            "select * from tidings_membership_changes",
            "select * from tidings_cursors",
            "select * from tidings_histories",
            "select * from tidings_feed_keys",
            "select rotate_feed_key()",
            "select tidings_report_topics('x')",
            "select tidings_prune_membership_changes(1)",
            "insert into tidings_disconnections (user_id) values ('alice')",
            "select * from tidings_schema_history",
            "insert into stream_tickets (hash, user_id, created_at, expires_at) \
               values (sha256('x'), 'alice', now(), now() + interval '1 hour')",
            "update stream_tickets set expires_at = expires_at + interval '1 hour'",
            "create table mine ()",
            "create function mine() returns int language sql as 'select 1'",
        ],
    )
    .await;
    let id = "insert into notifications (user_id, text, event, expires_at, ref) \
              values ('alice', 'x', 'build', now() + interval '1 hour', 'builds:7') returning id";
    let id: i64 = writer.query_one(id, &[]).await.expect("an id").get(0);
    let sent = "select send_notification('alice', 'y')";
    let sent: i64 = writer.query_one(sent, &[]).await.expect("an id").get(0);
    assert_eq!(sent, id + 1);
    let all = "select send_notification(7, 'z', 'build', now() + interval '1 hour', 'builds:8')";
    writer.batch_execute(all).await.expect(all);
    let named = "select send_notification('alice', 'z', ref => 'builds:9')";
    writer.batch_execute(named).await.expect(named);
    let long = "select send_notification('alice', 'z', ref => repeat('x', 256))";
    let error = writer.batch_execute(long).await.expect_err(long);
    let constraint = error.as_db_error().and_then(|error| error.constraint());
    assert_eq!(constraint, Some("notifications_ref_length"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_name_with_line_breaks_writes_nothing_into_a_stream() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let writer = database.connect().await;
    for event in [
        "x\ndata: forged\n",
        "x\rid: 99-forged",
        "x\r\n\r\nevent: y",
        "\n",
    ] {
        for statement in [
            "select send_notification('alice', 'x', $1)",
            "insert into notifications (user_id, text, event) values ('alice', 'x', $1)",
        ] {
            let error = writer.query(statement, &[&event]).await.expect_err(event);
            let constraint = error.as_db_error().and_then(|error| error.constraint());
            assert_eq!(
                constraint,
                Some("notifications_event_one_line"),
                "{event:?}"
            );
        }
    }
    database
        .execute("select send_notification('alice', 'after')")
        .await;
    assert_eq!(source.next_event().await.data, "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_marks_and_can_change_nothing_else() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', 'x'), create_stream_ticket('alice')")
        .await;
    let bridge = database.bridge().connect().await;
    may_not(
        &bridge,
        &[
            "insert into notifications (user_id, text) values ('alice', 'x')",
            "select send_notification('alice', 'x')",
            "update notifications set text = 'x'",
            "update notifications set user_id = 'bob'",
            "update notifications set xid = '1'",
            "delete from notifications",
            "truncate notifications",
            "select create_stream_ticket('alice')",
            "select create_stream_ticket(null, '1 hour', '{x}')",
            "select disconnect_user('alice')",
            "select disconnect_everyone()",
            "select tidings_prune_disconnections(1)",
            "delete from stream_tickets",
            "update stream_tickets set user_id = 'bob'",
            "select * from tidings_pruned",
            "update tidings_pruned set xid = '1'",
            "select * from tidings_disconnections",
            "delete from tidings_drained",
            "insert into tidings_reopened values ('1')",
            "delete from tidings_schema_history",
            "delete from tidings_adopted",
            "select tidings_adopt('notifications', 'x:', null)",
            "insert into notifications (topic, text) values ('x', 'x')",
            "select send_to_topic('x', 'x')",
            "select send_to_everyone('x')",
            "select subscribe('alice', 'x')",
            "select unsubscribe('alice', 'x')",
            "insert into topic_subscriptions (user_id, topic) values ('alice', 'x')",
            "delete from topic_subscriptions",
            "delete from tidings_membership_changes",
            "delete from tidings_cursors",
            "delete from tidings_histories",
            "update tidings_histories set timeline = 0",
            "insert into tidings_feed_keys default values",
            "delete from tidings_feed_keys",
            "select rotate_feed_key()",
            "select tidings_watch('notifications', 'user_id')",
            "select tidings_sync_memberships('x', '{}', '{}')",
            "create table mine ()",
            "create schema mine",
            "create function mine() returns int language sql as 'select 1'",
            "alter table notifications add column mine int",
            "drop trigger tidings_ring_doorbell on notifications",
            "set role tidings_owner",
            "select pg_read_file('postgresql.conf')",
        ],
    )
    .await;
    let marked = "update notifications set sent_at = now()";
    assert_eq!(bridge.execute(marked, &[]).await.expect(marked), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_sees_all_but_what_notifications_say() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', 'secret')")
        .await;
    let monitor = database.monitor().connect().await;
    may_not(
        &monitor,
        &[
            "select disconnect_everyone()",
            "select text from notifications",
            "select notifications from notifications",
            "select * from stream_tickets",
            "update notifications set sent_at = now()",
            "select send_notification('alice', 'x')",
            "select create_stream_ticket('alice')",
            "select create_stream_ticket(null, '1 hour', '{x}')",
            "select subscribe('alice', 'x')",
            "delete from topic_subscriptions",
            "select * from tidings_cursors",
            "insert into tidings_histories values (1, 1, now())",
            "select * from tidings_feed_keys",
        ],
    )
    .await;
    let seen = "select user_id || ' ' || sent from notifications \
                where ref is null and xid > '0' and created_at <= now()";
    assert_eq!(text(&monitor, seen).await, "alice false");
    monitor
        .batch_execute("select * from tidings_pruned; select * from tidings_schema_history")
        .await
        .expect("the rest");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_function_keeps_its_path_and_strangers_may_call_none() {
    let database = Database::migrated().await;
    let client = database.superuser().connect().await;
    let functions = "select oid::regprocedure::text, proconfig, prosecdef, \
         has_function_privilege('public', oid, 'execute'), proowner::regrole::text, \
         prokind = 'p' from pg_proc where pronamespace = 'public'::regnamespace";
    let rows = client.query(functions, &[]).await.expect("functions");
    assert!(rows.len() >= 9, "{}", rows.len());
    for row in rows {
        let (function, config): (String, Option<Vec<String>>) = (row.get(0), row.get(1));
        // A procedure that ends transactions can have neither, so it qualifies all names that it
        // uses.
        let is_procedure: bool = row.get(5);
        if !is_procedure {
            let path = config.into_iter().flatten().next();
            let path = path.as_deref();
            assert_eq!(path, Some("search_path=pg_catalog, pg_temp"), "{function}");
        }
        // Creates triggers on the caller's own table.
        let is_callers = is_procedure || function.starts_with("tidings_watch(");
        assert_ne!(
            row.get::<_, bool>(2),
            is_callers,
            "{function} runs as its caller"
        );
        assert!(
            !row.get::<_, bool>(3),
            "{function} may be called by anybody"
        );
        assert_eq!(row.get::<_, &str>(4), "tidings_owner", "{function}");
    }
    let tables = "select string_agg(relname, ' ') from pg_class \
         where relnamespace = 'public'::regnamespace and relkind = 'r' and \
         (relowner <> 'tidings_owner'::regrole or exists \
           (select from aclexplode(relacl) where grantee = 0))";
    let row = client.query_one(tables, &[]).await.expect("tables");
    assert_eq!(row.get::<_, Option<&str>>(0), None);
}

/// With a session's default `search_path`, or without `pg_temp` at its end, the owner would write
/// into these tables.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_puts_in_the_way_fools_no_function() {
    let database = Database::empty().await;
    database.prepare("tidings").await;
    let schema: SchemaName = "tidings".parse().expect("a name");
    let migrated = schema::migrate(&database.owner().url(), &schema, schema::LOCK_LIMIT).await;
    migrated.expect("the migrations");
    // The default in PostgreSQL 14 and older.
    let open = "grant create on schema public to public";
    database.superuser().execute(open).await;
    let caller = database.connect().await;
    caller
        .batch_execute(
            "create table public.caught (what text); grant all on public.caught to public; \
             create temporary table notifications (id bigint, user_id text, text text, event text); \
             create temporary table stream_tickets \
               (hash bytea, user_id text, created_at timestamptz, expires_at timestamptz); \
             create temporary table tidings_disconnections (user_id text, ticket bytea); \
             grant all on notifications, stream_tickets, tidings_disconnections to public; \
             create table public.notifications (id bigint, user_id text, text text, event text); \
             create function public.sha256(text) returns bytea language plpgsql as $$ begin \
               insert into public.caught values (current_user); return ''; end $$; \
             create function public.octet_length(varchar) returns int language plpgsql as $$ begin \
               insert into public.caught values (current_user); return 1; end $$; \
             create function public.trap(timestamptz, timestamptz) returns boolean \
               language plpgsql as $$ begin \
               insert into public.caught values (current_user); return true; end $$; \
             create operator public.< \
               (leftarg = timestamptz, rightarg = timestamptz, function = public.trap); \
             create operator public.> \
               (leftarg = timestamptz, rightarg = timestamptz, function = public.trap); \
             create function public.trap(text, text) returns boolean language plpgsql as $$ begin \
               insert into public.caught values (current_user); return true; end $$; \
             create operator public.= (leftarg = text, rightarg = text, function = public.trap); \
             create function public.current_setting(text, boolean) returns text \
               language plpgsql as $$ begin \
               insert into public.caught values (current_user); return 'off'; end $$; \
             create function public.concat(text, oid) returns text language plpgsql as $$ begin \
               insert into public.caught values (current_user); return 'x'; end $$; \
             create function public.pg_notify(text, text) returns void language plpgsql as $$ begin \
               insert into public.caught values (current_user); end $$; \
             create function public.pg_sequence_last_value(regclass) returns bigint \
               language plpgsql as $$ begin \
               insert into public.caught values (current_user); return null; end $$; \
             set search_path to public, pg_catalog, tidings",
        )
        .await
        .expect("traps");
    // As if a bridge were asleep, so that the trigger sends NOTIFY.
    let asleep = "select setval('tidings.tidings_bell', 1)";
    database.superuser().execute(asleep).await;
    for call in [
        "select tidings.send_notification('alice', 'real')",
        "select tidings.send_notification(7, 'real')",
        "insert into tidings.notifications (user_id, text) values ('alice', 'real')",
        "select tidings.create_stream_ticket('alice')",
        "select tidings.create_stream_ticket('alice')",
        "delete from tidings.stream_tickets",
        "select tidings.disconnect_user('alice')",
        "select tidings.disconnect_user(7)",
        "select tidings.disconnect_everyone()",
    ] {
        caller.batch_execute(call).await.expect(call);
    }
    // Traps may run as the caller, in its own column defaults, but never as the owner.
    let caught = "select count(*) from public.caught where what = 'tidings_owner'";
    let superuser = database.superuser();
    assert_eq!(superuser.ids(caught).await, [0]);
    let real = "select count(*) from tidings.notifications where text = 'real'";
    assert_eq!(superuser.ids(real).await, [3]);
    let ended = "select count(*) from tidings.tidings_disconnections";
    assert_eq!(superuser.ids(ended).await, [5]);
    for fake in ["notifications", "stream_tickets", "tidings_disconnections"] {
        let fake = format!("select count(*) from pg_temp.{fake}");
        let count = caller.query_one(&fake, &[]).await.expect("a count");
        assert_eq!(count.get::<_, i64>(0), 0, "{fake}");
    }
}

/// As where privileges were granted by hand before these tables existed.
#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_may_not_use_newer_tables_delivers_and_marks() {
    let database = Database::migrated().await;
    let revoke = "revoke all on tidings_incarnation, tidings_drained, tidings_reopened \
                  from tidings_bridge; \
                  select send_notification('alice', 'unsent')";
    database.superuser().execute(revoke).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect("alice").await;
    let backlog = until(&mut source, "tidings.caught-up").await;
    assert_eq!(backlog.last().expect("an event").data, "unsent");
    let send = |text| format!("select send_notification('alice', '{text}')");
    database.owner().execute(&send("live")).await;
    let live = source.next_event().await;
    assert_eq!(live.data, "live");
    database
        .until("select count(sent_at) = 2 from notifications")
        .await;
    drop(source);
    database.owner().execute(&send("missed")).await;
    let mut source = bridge
        .connect_with("alice", "", &[("Last-Event-ID", &live.last_event_id)])
        .await;
    let missed = until(&mut source, "tidings.caught-up").await;
    assert_eq!(missed.last().expect("an event").data, "missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_rings_where_notify_was_taken_from_public() {
    let database = Database::migrated().await;
    // A superuser ran roles.sql, which granted it to the owner.
    database
        .superuser()
        .execute("revoke execute on function pg_notify(text, text) from public")
        .await;
    may_not(&database.connect().await, &["select pg_notify('x', '')"]).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    for n in 0..3 {
        let insert =
            format!("insert into notifications (user_id, text) values ('alice', 'row {n}')");
        database.execute(&insert).await;
        assert_eq!(source.next_event().await.data, format!("row {n}"));
    }
    let without = "revoke execute on function pg_notify(text, text) from tidings_owner";
    database.superuser().execute(without).await;
    bridge.stop().await;
    let rung = "select setval('tidings_bell', 1)";
    database.superuser().execute(rung).await;
    may_not(
        &database.connect().await,
        &["insert into notifications (user_id, text) values ('alice', 'x')"],
    )
    .await;
}

/// Ten thousand different NOTIFY payloads, because identical ones would be merged.
#[tokio::test(flavor = "multi_thread")]
async fn forged_bells_of_a_role_without_any_right_change_nothing_and_hold_nobody_up() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let make = "do $$ begin create role stranger login; \
                exception when duplicate_object or unique_violation then null; end $$";
    database.superuser().execute(make).await;
    let stranger = database.as_role("stranger").connect().await;
    may_not(
        &stranger,
        &[
            "select from notifications",
            "select send_notification('a', 'b')",
        ],
    )
    .await;
    let oid = "select 'notifications'::regclass::oid::text";
    let channel = format!(
        "tidings_{}",
        text(&database.owner().connect().await, oid).await
    );
    let flood = async {
        for part in 0..10 {
            let ring = format!(
                "select pg_notify('{channel}', 'alice {part} ' || n) from generate_series(1, 1000) n"
            );
            stranger.batch_execute(&ring).await.expect("rings");
        }
    };
    let others = async {
        for n in 0..20 {
            let send = format!("select send_notification('alice', 'row {n}')");
            database.execute(&send).await;
            // The next event is the row: no NOTIFY became an event.
            assert_eq!(source.next_event().await.data, format!("row {n}"));
        }
    };
    tokio::join!(flood, others);
    let mut newcomer = bridge.connect("alice").await;
    until(&mut newcomer, "tidings.caught-up").await;
    bridge.until_ready_is(200).await;
}

/// A role with CREATEROLE that owns a database and is not a superuser.
async fn dba(database: &Database) -> Database {
    let make = "create role dba login createrole; \
                do $$ begin execute format('alter database %I owner to dba', current_database()); end $$";
    database.superuser().execute(make).await;
    // Since version 15, schema public belongs to the owner of the database.
    if database.server_version().await < 15_00_00 {
        let own = "alter schema public owner to dba";
        database.superuser().execute(own).await;
    }
    database.as_role("dba")
}

async fn owners(database: &Database, schema: &str) -> String {
    let owners = format!(
        "select string_agg(distinct owner::regrole::text, ' ') from \
         (select relowner as owner from pg_class where relnamespace = '{schema}'::regnamespace \
          union all select proowner from pg_proc where pronamespace = '{schema}'::regnamespace) o"
    );
    text(&database.superuser().connect().await, &owners).await
}

async fn serves(database: &Database, schema: &str) {
    let login = "do $$ begin create role bridge login in role tidings_bridge; \
                 exception when duplicate_object or unique_violation then null; end $$";
    database.superuser().execute(login).await;
    let place = format!("--schema={schema}");
    let bridge = Bridge::start_with(&database.bridge(), &["--migrate=never", &place]).await;
    let mut source = bridge.connect_live("alice").await;
    let send = format!("select {schema}.send_notification('alice', 'hello')");
    database.superuser().execute(&send).await;
    assert_eq!(source.next_event().await.data, "hello");
    let id = source.last_event_id().to_owned();
    let mut returning = bridge.resume("alice", &id).await;
    until(&mut returning, "tidings.caught-up").await;
    let marked = format!("select bool_and(sent) from {schema}.notifications");
    database.superuser().until(&marked).await;
}

/// An upgrade runs the new release's `sql/roles.sql` before its migrations.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_fit_a_schema_that_is_still_of_an_earlier_release() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "earlier").await;
    let superuser = database.superuser();
    assert_eq!(superuser.run_roles("public").await, Ok(String::new()));
    superuser.migrate().await;
    // Migration 20 adds it.
    superuser
        .execute("alter table notifications drop column ref cascade")
        .await;
    assert_eq!(superuser.run_roles("public").await, Ok(String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dba_who_is_no_superuser_makes_the_roles_before_or_after_the_tables_and_again() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "before").await;
    let dba = dba(&database).await;
    for _ in 0..2 {
        assert_eq!(dba.run_roles("public").await, Ok(String::new()));
    }
    let member = "create role member login; grant tidings_owner to member";
    dba.execute(member).await;
    database.as_role("member").migrate().await;
    assert_eq!(owners(&database, "public").await, "tidings_owner");
    serves(&database, "public").await;
    // Running it again changes nothing.
    let acl = "select string_agg(relacl::text, ' ' order by oid) from pg_class \
               where relnamespace = 'public'::regnamespace";
    let client = database.superuser().connect().await;
    let before = text(&client, acl).await;
    assert_eq!(dba.run_roles("public").await, Ok(String::new()));
    assert_eq!(text(&client, acl).await, before);

    // Another schema, which another role has already migrated.
    dba.execute("create schema other").await;
    let other: SchemaName = "other".parse().expect("a name");
    let as_dba = Database::bare(&cluster, "after").await;
    as_dba
        .superuser()
        .execute(
            "alter database after owner to dba; create role app login; \
                  grant create on database after to app; grant app to dba",
        )
        .await;
    // In a database where the groups aren't set up, the role that migrates becomes the owner.
    let app = as_dba.as_role("app");
    schema::migrate(&app.url(), &other, schema::LOCK_LIMIT)
        .await
        .expect("the migrations");
    assert_eq!(owners(&as_dba, "other").await, "app");
    as_dba
        .superuser()
        .execute("alter schema other owner to dba")
        .await;
    let dba = as_dba.as_role("dba");
    let refused = dba.run_roles("other").await.expect_err("app is unknown");
    assert!(
        refused.contains("belongs to app") && refused.contains("-v from=app"),
        "{refused}"
    );
    let said = dba.run_roles_with(&["schema=other", "from=app"]).await;
    let said = said.expect("handed over");
    assert!(
        said.contains("other.notifications owner to tidings_owner (it was app's)"),
        "{said}"
    );
    assert_eq!(owners(&as_dba, "other").await, "tidings_owner");
    serves(&as_dba, "other").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_sql_says_who_has_to_do_what_it_may_not() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "app").await;
    let make =
        "create role nobody login; revoke execute on function pg_notify(text, text) from public";
    database.superuser().execute(make).await;
    let said = database.as_role("nobody").run_roles("public").await;
    let said = said.expect_err("a refusal");
    assert!(said.contains("alter role nobody createrole;"), "{said}");
    let dba = dba(&database).await;
    let said = dba.run_roles("public").await.expect("roles");
    for group in ["tidings_owner", "tidings_bridge"] {
        let line =
            format!("grant execute on function pg_catalog.pg_notify(text, text) to {group};");
        assert!(
            said.contains(&format!("Let a superuser run: {line}")),
            "{said}"
        );
        database.superuser().execute(&line).await;
    }
    assert_eq!(dba.run_roles("public").await, Ok(String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_migrate_is_given_the_statement_that_allows_it() {
    let database = Database::empty().await;
    // The roles below own nothing in the schema.
    let said = process::refusal(&database, &[]).await;
    assert!(
        said.contains("bridge may not do so") && said.contains("run `tidings migrate`"),
        "{said}"
    );
    database.migrate().await;
    let older = "delete from tidings_schema_history where version = (select max(version) from tidings_schema_history)";
    database.owner().execute(older).await;
    let said = process::refusal(&database, &[]).await;
    assert!(
        said.contains("grant \"tidings_owner\" to \"bridge\";"),
        "{said}"
    );
}
