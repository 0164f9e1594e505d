//! The schema: created once however many bridges start at the same time, never at the expense of
//! other objects, and without privileges for other roles.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tidings::{
    app::{App, Parts, StartError},
    monitoring::logging::ErrorChain,
    postgres::{
        connect::DatabaseUrl,
        schema::{self, Fit, SchemaError, SchemaName},
    },
};
use tokio_postgres::error::SqlState;

use crate::support::{
    bridge::{Bridge, serve_options},
    database::Database,
    event_source::EventSource,
    process::refusal,
    until,
};

fn name(text: &str) -> SchemaName {
    text.parse().expect("a schema's name")
}

async fn refused(database: &Database, schema: &str) -> String {
    let outcome = schema::migrate(&database.owner().url(), &name(schema), schema::LOCK_LIMIT).await;
    ErrorChain(&outcome.expect_err("a refusal")).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_that_start_at_once_migrate_once() {
    let database = Database::empty().await;
    let owner = database.owner();
    let bridges = join_all((0..6).map(|_| Bridge::start(&owner))).await;
    let applied = "select version from tidings_schema_history order by version";
    let client = owner.connect().await;
    let versions: Vec<i32> = client
        .query(applied, &[])
        .await
        .expect("rows")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(versions, (1..=schema::version()).collect::<Vec<_>>());
    let mut source = bridges[5].connect("alice").await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    until(&mut source, "message").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_an_error_that_names_the_setting_and_touches_nothing() {
    let taken = [
        (
            "create table notifications (mine int); insert into notifications values (7)",
            "a table notifications",
        ),
        (
            "create view notifications as select 1 as mine",
            "a view notifications",
        ),
        (
            "create type notifications as enum ('mine')",
            "a type notifications",
        ),
        (
            "create sequence notifications_id_seq",
            "a sequence notifications_id_seq",
        ),
        (
            "create table mine (id int); create index notifications_xid_id on mine (id)",
            "an index notifications_xid_id",
        ),
        (
            "create function send_notification(mine int) returns int language sql as 'select 1'",
            "a function send_notification(mine integer)",
        ),
        (
            "create table tidings_schema_history (mine int)",
            "a relation tidings_schema_history",
        ),
    ];
    for (statements, what) in taken {
        let database = Database::empty().await;
        database.superuser().execute(statements).await;
        database.prepare("tidings").await;
        let before = objects(&database).await;
        let message = refused(&database, "public").await;
        assert!(
            message.contains(what) && message.contains("TIDINGS_SCHEMA"),
            "{message}"
        );
        assert_eq!(objects(&database).await, before, "{statements}");
        // Installing into another schema works.
        schema::migrate(
            &database.owner().url(),
            &name("tidings"),
            schema::LOCK_LIMIT,
        )
        .await
        .expect("a schema of its own");
        assert_eq!(objects(&database).await, before, "{statements}");
    }
}

/// All objects in the schema public.
async fn objects(database: &Database) -> Vec<String> {
    let query = "select relkind::text || ' ' || relname from pg_class where relnamespace = 'public'::regnamespace \
         union all select 'function ' || oid::regprocedure from pg_proc where pronamespace = 'public'::regnamespace \
         union all select 'type ' || typname from pg_type where typnamespace = 'public'::regnamespace \
         order by 1";
    let rows = database
        .connect()
        .await
        .query(query, &[])
        .await
        .expect("objects");
    rows.iter().map(|row| row.get(0)).collect()
}

/// The names that migrations use.
const NAMES: &str = "
    select relname::text from pg_class where relnamespace = 'public'::regnamespace
      and relname !~ '^tidings_schema_history'
    union select proname from pg_proc where pronamespace = 'public'::regnamespace";

#[tokio::test(flavor = "multi_thread")]
async fn every_name_that_a_migration_takes_is_looked_for_beforehand() {
    // For each object of a migrated schema, creates one of the same name where a new schema is to
    // be installed.
    let database = Database::migrated().await;
    let client = database.connect().await;
    for row in client.query(NAMES, &[]).await.expect("names") {
        let taken: String = row.get(0);
        let other = Database::empty().await;
        other
            .owner()
            .execute(&format!("create sequence {taken}"))
            .await;
        let message = refused(&other, "public").await;
        assert!(
            message.contains(&format!("a sequence {taken}")),
            "{taken}: {message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_migration_creates_the_names_that_are_listed_for_it_and_no_others() {
    let owner = Database::empty().await.owner();
    let script = schema::plan(&owner.url(), &SchemaName::public()).await;
    let script = script.expect("the migrations");
    let client = owner.connect().await;
    let mut known = BTreeSet::new();
    let mut rest = script.as_str();
    for version in 0..=schema::version() {
        let next = format!("\n\n-- V{}__", version + 1);
        let step;
        (step, rest) = rest.split_at(rest.find(&next).unwrap_or(rest.len()));
        let lines = step.lines().filter(|line| !line.starts_with('\\'));
        let step = lines.collect::<Vec<_>>().join("\n");
        client.batch_execute(&step).await.expect("a migration");
        let names = client.query(NAMES, &[]).await.expect("names");
        let names: BTreeSet<String> = names.iter().map(|row| row.get(0)).collect();
        let created: BTreeSet<_> = names.difference(&known).map(String::as_str).collect();
        let listed = schema::names().filter(|&(of, _)| of == version);
        assert_eq!(
            created,
            listed.map(|(_, name)| name).collect(),
            "V{version}"
        );
        known = names;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_schema_is_created_or_asked_for() {
    let database = Database::empty().await;
    let odd = "Odd \"name\" of a schema";
    let create = "do $$ begin execute format( \
        'grant create on database %I to tidings_owner', current_database()); end $$";
    database.superuser().execute(create).await;
    schema::migrate(&database.owner().url(), &name(odd), schema::LOCK_LIMIT)
        .await
        .expect("a schema");
    database
        .execute("select \"Odd \"\"name\"\" of a schema\".send_notification('a', 'b')")
        .await;

    database.superuser().execute("create role poor login").await;
    let poor = database.as_role("poor").url();
    let error = schema::migrate(&poor, &name("missing"), schema::LOCK_LIMIT)
        .await
        .expect_err("a refusal");
    let message = error.to_string();
    assert!(matches!(error, SchemaError::NoSchema { .. }), "{message}");
    assert!(
        message.contains("create schema \"missing\" authorization \"poor\";"),
        "{message}"
    );
}

/// As the README describes for a DBA.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_few_rights_serves_what_somebody_else_migrated() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "create role bridge_of_test login; \
             grant select on notifications, stream_tickets, tidings_schema_history, \
               topic_subscriptions, tidings_membership_changes, tidings_cursors \
               to bridge_of_test; \
             grant execute on function tidings_disconnections_page, tidings_pruned_through \
               to bridge_of_test; \
             grant update (sent_at) on notifications to bridge_of_test; \
             grant select, update on sequence tidings_bell to bridge_of_test",
        )
        .await;
    let theirs = database.as_role("bridge_of_test");
    let bridge = Bridge::start_with(&theirs, &["--migrate=never"]).await;
    let mut source = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    assert_eq!(source.next_event().await.data, "hello");
    let id = source.last_event_id().to_owned();
    let mut returning = bridge.resume("alice", &id).await;
    until(&mut returning, "tidings.caught-up").await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_migrates_only_what_is_too_old_and_only_if_it_may() {
    let database = Database::empty().await;
    let start = async |more: &[&str]| {
        let options = serve_options(&database, more);
        App::build(Parts::of(&options).expect("settings"), &options.bridge).await
    };
    let error = start(&["--migrate=never"]).await.err().expect("a refusal");
    assert!(
        matches!(error, StartError::Schema(SchemaError::TooOld { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("tidings migrate"), "{error}");
    assert_eq!(objects(&database).await, [""; 0]);

    database.migrate().await;
    drop(start(&["--migrate=never"]).await.expect("a bridge"));

    // A newer release first adds something, and then removes something.
    let add = |version: i32, name: &str| {
        format!(
            "insert into tidings_schema_history (version, name, applied_on, checksum) \
             values ({version}, '{name}', '2026-11-22T00:00:00Z', '1')"
        )
    };
    let newer = schema::version() + 1;
    database
        .owner()
        .execute(&add(newer, "expand_something"))
        .await;
    drop(start(&[]).await.expect("a bridge on a newer schema"));
    database.migrate().await;
    database
        .owner()
        .execute(&add(newer + 1, "contract_something"))
        .await;
    let error = start(&[]).await.err().expect("a refusal");
    assert!(
        matches!(error, StartError::Schema(SchemaError::TooNew { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("newer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_fails_leaves_nothing_of_itself_and_can_be_repeated() {
    let database = Database::empty().await.superuser();
    // Without the language, the trigger function can't be created.
    database.execute("drop extension plpgsql").await;
    let message = refused(&database, "public").await;
    assert!(
        message.contains("rolled back") && message.contains("plpgsql"),
        "{message}"
    );
    let client = database.connect().await;
    let fit = schema::fit(&client, &SchemaName::public())
        .await
        .expect("a history");
    assert_eq!(fit, Fit::TooOld { found: Some(1) });
    database.execute("create extension plpgsql").await;
    database.migrate().await;
}

/// A database with the tables of an earlier version.
async fn at_version(version: i32) -> Database {
    let database = Database::empty().await;
    let owner = database.owner();
    let script = schema::plan(&owner.url(), &SchemaName::public()).await;
    let script = script.expect("the migrations");
    let (before, _) = script
        .split_once(&format!("-- V{}__", version + 1))
        .expect("the next version");
    // Lines with a backslash are for psql.
    let lines = before.lines().filter(|line| !line.starts_with('\\'));
    owner.execute(&lines.collect::<Vec<_>>().join("\n")).await;
    database
}

/// A role that was granted by name the privileges that bridges used before, and not
/// `tidings_bridge`.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_was_granted_its_rights_by_name_gets_those_of_new_migrations() {
    let database = at_version(14).await;
    database
        .superuser()
        .execute(
            "create role bridge_by_name login; \
             grant select on notifications, stream_tickets, tidings_schema_history \
               to bridge_by_name; \
             grant execute on function tidings_disconnections_page, tidings_pruned_through \
               to bridge_by_name; \
             grant update (sent_at) on notifications to bridge_by_name; \
             grant select, update on sequence tidings_bell to bridge_by_name",
        )
        .await;
    database.migrate().await;
    // Earlier and new bridges agree on the current incarnation.
    database
        .until(
            "select (select since from tidings_incarnation) \
             = (select stats_reset from pg_stat_bgwriter)",
        )
        .await;
    database
        .until(
            "select has_table_privilege('bridge_by_name', 'tidings_incarnation', 'select') \
               and has_table_privilege('bridge_by_name', 'tidings_incarnation', 'insert') \
               and not has_table_privilege('bridge_by_name', 'tidings_incarnation', 'update, delete') \
               and has_function_privilege('bridge_by_name', \
                 'tidings_report_readiness(text, text, text)', 'execute')",
        )
        .await;
    let bridge = Bridge::start(&database.as_role("bridge_by_name")).await;
    bridge.until_ready_is(200).await;
}

/// True when a session waits for a lock.
const WAITS: &str = "select exists (select from pg_locks where not granted and database = \
    (select oid from pg_database where datname = current_database()))";

#[tokio::test(flavor = "multi_thread")]
async fn writers_go_on_beside_a_migration_that_waits_for_somebody() {
    let database = at_version(9).await;
    let (owner, schema) = (database.owner(), SchemaName::public());
    let slow = owner.connect().await;
    let insert = "insert into notifications (user_id, text) values ('alice', 'x')";
    let open = format!("begin; {insert}");
    slow.batch_execute(&open).await.expect("a transaction");
    let url = owner.url();
    let migrating =
        tokio::spawn(async move { schema::migrate(&url, &schema, schema::LOCK_LIMIT).await });
    database.until(WAITS).await;
    // The migration waits for the slow transaction. Another writer gets through meanwhile.
    owner.execute(insert).await;
    assert!(!migrating.is_finished());
    slow.batch_execute("commit").await.expect("an end");
    migrating.await.expect("a task").expect("migrated");
    assert_eq!(
        database.ids("select count(*) from notifications").await,
        [2]
    );
    // Bridges that start later find everything in place.
    let bridge = Bridge::start(&database).await;
    bridge.stop().await;
}

/// On a table that has rows, it is built while others write, and what an attempt that failed has
/// left is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_topics_is_built_beside_writers_and_after_a_failed_attempt() {
    let database = at_version(23).await;
    let (owner, schema) = (database.owner(), SchemaName::public());
    let insert = "insert into notifications (user_id, text) values ('alice', 'x')";
    owner.execute(insert).await;
    let reader = owner.connect().await;
    reader
        .batch_execute("begin isolation level repeatable read; select from pg_class")
        .await
        .expect("a snapshot");
    let index = "select coalesce((select indisvalid from pg_index \
         where indexrelid = to_regclass('notifications_topic_xid_id')), true)";
    let outcome = schema::migrate(&owner.url(), &schema, Duration::from_secs(1)).await;
    let error = outcome.expect_err("the reader is in the way");
    assert!(matches!(error, SchemaError::InUse { .. }), "{error}");
    database.until(&format!("select not ({index})")).await;

    let (url, name) = (owner.url(), schema.clone());
    let migrating =
        tokio::spawn(async move { schema::migrate(&url, &name, schema::LOCK_LIMIT).await });
    // It waits for a transaction, and not for a lock of this database.
    let waits = "select exists (select from pg_stat_activity \
         where datname = current_database() and wait_event_type = 'Lock')";
    database.superuser().until(waits).await;
    owner.execute(insert).await;
    assert!(!migrating.is_finished());
    reader.batch_execute("commit").await.expect("an end");
    migrating.await.expect("a task").expect("migrated");
    database
        .until(
            "select bool_and(indisvalid) and count(*) = 1 from pg_index \
             where indexrelid = to_regclass('notifications_topic_xid_id')",
        )
        .await;
    database
        .until(
            "select bool_and(convalidated) and count(*) = 2 from pg_constraint \
             where conname in ('notifications_one_addressee', 'notifications_topic_form')",
        )
        .await;
}

/// Its arguments have changed, so it could not be replaced in place.
#[tokio::test(flavor = "multi_thread")]
async fn send_notification_keeps_its_privileges_and_what_depends_on_it_is_named() {
    let database = at_version(21).await;
    let superuser = database.superuser();
    superuser
        .execute(
            "create role sender_by_name; create role anon_of_test; \
             grant execute on function send_notification(text, text, text) \
               to sender_by_name with grant option; \
             grant execute on function send_notification(bigint, text, text) to public; \
             grant execute on function \
               send_notification(text, text, text), send_notification(bigint, text, text) \
               to tidings_writer; \
             alter default privileges for role tidings_owner grant execute on functions to anon_of_test; \
             create view sends as select send_notification('alice', 'x') as id",
        )
        .await;
    let client = database.connect().await;
    let prepare = "prepare two as select send_notification('alice', 'two'); \
                   prepare three as select send_notification(7, 'three', 'named')";
    client.batch_execute(prepare).await.expect(prepare);
    client
        .batch_execute("execute two; execute three")
        .await
        .expect("calls");
    let said = refused(&database, "public").await;
    for expected in ["view public.sends", "Drop them, run `tidings migrate`"] {
        assert!(said.contains(expected), "{said}");
    }
    client
        .batch_execute("execute two; execute three")
        .await
        .expect("calls");
    superuser.execute("drop view sends").await;
    database.migrate().await;
    client
        .batch_execute("execute two; execute three")
        .await
        .expect("calls");
    assert_eq!(
        database.ids("select count(*) from notifications").await,
        [6]
    );
    let privileges = "select concat_ws(' ', \
        has_function_privilege('sender_by_name', f, 'execute with grant option'), \
        has_function_privilege('anon_of_test', f, 'execute'), \
        has_function_privilege('tidings_writer', f, 'execute'), \
        pg_get_userbyid(proowner), obj_description(f, 'pg_proc')) \
      from pg_proc, lateral (select pg_proc.oid) as o (f) \
      where proname = 'send_notification' order by pronargs, proargtypes[0]";
    let rows = superuser.connect().await.query(privileges, &[]).await;
    let rows = rows.expect(privileges);
    let found: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let comment = "Notifies a user and returns the notification's id (Tidings).";
    assert_eq!(
        found,
        [
            // `tidings migrate` revokes what PUBLIC had, as before.
            format!("f f t tidings_owner {comment}"),
            format!("t f t tidings_owner {comment}"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_finds_no_gap_names_who_is_in_the_way() {
    let database = at_version(9).await;
    // Older than the slow one, but it blocks nothing.
    let reader = database.owner().connect().await;
    let read = "begin; select from notifications";
    reader.batch_execute(read).await.expect("a transaction");
    let slow = database.owner().connect().await;
    let open = "set application_name = 'the slow one'; begin; \
        insert into notifications (user_id, text) values ('alice', 'x')";
    slow.batch_execute(open).await.expect("a transaction");
    let limit = Duration::from_secs(2);
    let refused = schema::migrate(&database.owner().url(), &SchemaName::public(), limit).await;
    let said = ErrorChain(&refused.expect_err("a refusal")).to_string();
    for expected in [
        "a table was locked for 2 s",
        "the slow one) uses it",
        "select pg_terminate_backend(",
        "--lock-limit=10m",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    let found = "select max(version)::bigint from tidings_schema_history";
    assert_eq!(database.ids(found).await, [9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_would_mangle_texts_is_refused() {
    let database = Database::empty().await.superuser();
    let client = database.connect().await;
    client
        .batch_execute("create database latin encoding 'LATIN1' template template0")
        .await
        .expect("a database");
    let name_of = client
        .query_one("select current_database()::text", &[])
        .await
        .expect("a name");
    let url = database
        .connection_string()
        .replace(name_of.get::<_, &str>(0), "latin");
    let latin: DatabaseUrl = url.parse().expect("a connection string");
    let error = schema::migrate(&latin, &SchemaName::public(), schema::LOCK_LIMIT)
        .await
        .expect_err("a refusal");
    assert!(error.to_string().contains("UTF8"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_may_call_nothing_and_a_temporary_table_fools_nobody() {
    let database = Database::migrated().await;
    let client = database.superuser().connect().await;
    let functions = "select oid::regprocedure::text, proconfig, \
         has_function_privilege('public', oid, 'execute'), prokind = 'p' \
         from pg_proc where pronamespace = 'public'::regnamespace";
    let rows = client.query(functions, &[]).await.expect("functions");
    assert!(rows.len() >= 8, "{rows:?}");
    for row in rows {
        let (function, config): (String, Option<Vec<String>>) = (row.get(0), row.get(1));
        // The function of the INSERT trigger qualifies all names instead, which is cheaper.
        // Procedures that end transactions can't have a search_path of their own.
        if function != "tidings_ring_doorbell()" && !row.get::<_, bool>(3) {
            let path = config.into_iter().flatten().next();
            let path = path.as_deref();
            assert_eq!(path, Some("search_path=pg_catalog, pg_temp"), "{function}");
        }
        assert!(
            !row.get::<_, bool>(2),
            "{function} may be called by anybody"
        );
    }

    client
        .batch_execute(
            "create role writer_of_test login; \
             grant execute on function send_notification(text, text, text, timestamptz, text) to writer_of_test",
        )
        .await
        .expect("a role");
    let writer = database.as_role("writer_of_test").connect().await;
    let theirs =
        "create temporary table notifications (id bigint, user_id text, text text, event text)";
    writer
        .batch_execute(theirs)
        .await
        .expect("a temporary table");
    let id: i64 = writer
        .query_one("select send_notification('alice', 'real')", &[])
        .await
        .expect("an id")
        .get(0);
    assert_eq!(
        database.ids("select id from public.notifications").await,
        [id]
    );
    let read = writer
        .query("select * from public.notifications", &[])
        .await;
    assert_eq!(
        read.expect_err("a refusal").code(),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn send_notification_takes_texts_numbers_and_names_of_events() {
    let database = Database::migrated().await;
    database
        .execute(
            "select send_notification('alice', 'a'); \
             select send_notification('alice'::varchar, 'b', 'build'); \
             select send_notification(42, 'c'); \
             select send_notification(42::bigint, 'd', event => null); \
             select send_notification(user_id => 'bob', text => 'e')",
        )
        .await;
    let client = database.owner().connect().await;
    let rows = client
        .query("select user_id || ' ' || text || coalesce(' ' || event, '') from notifications order by id", &[])
        .await
        .expect("rows");
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, ["alice a", "alice b build", "42 c", "42 d", "bob e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_refuses_what_could_not_be_delivered() {
    let database = Database::migrated().await;
    let client = database.connect().await;
    let refused = [
        ("('', 'x', null)", "notifications_user_id_length"),
        (
            "(repeat('x', 256), 'x', null)",
            "notifications_user_id_length",
        ),
        (
            "('alice', repeat('x', 1048577), null)",
            "notifications_text_length",
        ),
        ("('alice', 'x', '')", "notifications_event_length"),
        (
            "('alice', 'x', repeat('x', 101))",
            "notifications_event_length",
        ),
        (
            "('alice', 'x', E'a\\nid: 1')",
            "notifications_event_one_line",
        ),
        ("('alice', 'x', E'a\\rb')", "notifications_event_one_line"),
        ("('alice', 'x', 'open')", "notifications_event_not_reserved"),
        (
            "('alice', 'x', 'error')",
            "notifications_event_not_reserved",
        ),
        (
            "('alice', 'x', 'tidings.gap')",
            "notifications_event_not_reserved",
        ),
    ];
    for (values, constraint) in refused {
        let insert = format!("insert into notifications (user_id, text, event) values {values}");
        let error = client.batch_execute(&insert).await.expect_err(values);
        let found = error.as_db_error().and_then(|error| error.constraint());
        assert_eq!(found, Some(constraint), "{values}");
    }
    let taken = "insert into notifications (user_id, text, event) values \
         (repeat('x', 255), repeat('x', 1048576), repeat('x', 100)), ('a', '', 'tidings'), ('a', '', 'opened')";
    client.batch_execute(taken).await.expect("good rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_in_one_database_do_not_hear_each_other() {
    let database = Database::empty().await;
    for schema in ["one", "two"] {
        database.prepare(schema).await;
        let migrated =
            schema::migrate(&database.owner().url(), &name(schema), schema::LOCK_LIMIT).await;
        migrated.expect("the migrations");
    }
    let (one, two) = (
        Bridge::start_with(&database, &["--schema=one"]).await,
        Bridge::start_with(&database, &["--schema=two"]).await,
    );
    let mut sources: Vec<EventSource> = vec![
        one.connect_live("alice").await,
        two.connect_live("alice").await,
    ];
    database
        .execute("select one.send_notification('alice', 'one')")
        .await;
    database
        .execute("select two.send_notification('alice', 'two')")
        .await;
    assert_eq!(sources[0].next_event().await.data, "one");
    assert_eq!(sources[1].next_event().await.data, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_restored_from_another_cluster_are_delivered_after_the_next_start() {
    let database = Database::migrated().await;
    // While a dump is restored, its triggers don't exist yet.
    database
        .owner()
        .execute("alter table notifications disable trigger tidings_restamp")
        .await;
    // As in a restored dump: transaction ids of a cluster that was further ahead.
    database
        .owner()
        .execute(
            "insert into notifications (user_id, text, xid, sent_at) values \
             ('alice', 'unsent', '900000000', null), ('alice', 'sent', '900000001', now())",
        )
        .await;
    // Only the owner may make them deliverable.
    let said = refusal(&database, &[]).await;
    let advice = "run `tidings migrate` as the table's owner";
    assert!(said.contains(advice), "{said}");
    database.migrate().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect("alice").await;
    let backlog = until(&mut source, "tidings.caught-up").await;
    assert_eq!(
        backlog
            .iter()
            .map(|event| event.data.as_str())
            .collect::<Vec<_>>(),
        ["unsent"]
    );
    database
        .execute("select send_notification('alice', 'live')")
        .await;
    assert_eq!(source.next_event().await.data, "live");

    // If the owner forges one later, no bridge stops or misses other rows.
    database.owner().execute("insert into notifications (user_id, text, xid) values ('alice', 'forged', '900000000')")
        .await;
    database
        .execute("select send_notification('alice', 'after')")
        .await;
    assert_eq!(source.next_event().await.data, "after");
}

/// Event names that a terminal would execute, or that aren't names.
const UNPRINTABLE: [&str; 6] = ["\t", "\x1b[2J", "a\x07", "\x7f", "\u{9b}2J", "a\u{85}"];

#[tokio::test(flavor = "multi_thread")]
async fn events_are_printable_from_now_on_and_those_of_before_are_delivered_and_marked() {
    let database = at_version(17).await;
    let insert = "insert into notifications (user_id, text, event) values ('alice', 'old', $1)";
    // The groups have no privileges yet.
    let writer = database.owner().connect().await;
    for event in UNPRINTABLE {
        writer
            .execute(insert, &[&event])
            .await
            .expect("a row of before");
    }
    // As in a dump that restored ids but not the sequence.
    database
        .owner()
        .execute(
            "insert into notifications (id, user_id, text, event) overriding system value \
             values (1000, 'alice', 'old', e'\\x1b[2J')",
        )
        .await;
    database.migrate().await;

    let paths = [
        "insert into notifications (user_id, text, event) values ('alice', 'new', $1)",
        "select send_notification('alice', 'new', $1)",
        "select send_notification(7, 'new', $1)",
    ];
    // After restoring ids, the sequence must be set.
    let set = "select setval('notifications_id_seq', 1000)";
    database.owner().execute(set).await;
    // The first row of an empty table is checked too.
    let empty = Database::migrated().await;
    for database in [&empty, &database] {
        let writer = database.connect().await;
        for (statement, event) in paths
            .iter()
            .flat_map(|path| UNPRINTABLE.map(|event| (path, event)))
        {
            let error = writer.query(*statement, &[&event]).await.expect_err(event);
            let constraint = error.as_db_error().and_then(|error| error.constraint());
            assert_eq!(
                constraint,
                Some("notifications_event_printable"),
                "{statement} {event:?}"
            );
        }
        for event in ["build", "étape", "構築", "🎉", "a b"] {
            for path in &paths {
                writer.query(*path, &[&event]).await.expect(event);
            }
        }
    }
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect("alice").await;
    let mut old = Vec::new();
    for event in until(&mut alice, "tidings.caught-up").await {
        if event.data == "old" {
            old.push(event.name);
        }
    }
    assert_eq!(old[..UNPRINTABLE.len()], UNPRINTABLE);
    assert_eq!(old[UNPRINTABLE.len()..], ["\x1b[2J"]);
    database
        .until("select bool_and(sent) from notifications where user_id = 'alice'")
        .await;
}
