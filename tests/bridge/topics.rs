//! Topics in the database: who is subscribed since when, what bridges learn of it, and what the
//! functions for applications reject.

use tokio::time::timeout;
use tokio_postgres::{Client, error::SqlState};

use crate::{
    command_line::run,
    support::{PATIENCE, bridge::Bridge, database::Database},
};

const SUBSCRIPTIONS: &str =
    "select user_id || ' ' || topic from topic_subscriptions order by user_id, topic";

const CHANGES: &str = "select concat(coalesce(user_id, '-'), ' ', coalesce(topic, '-')) \
     from tidings_membership_changes order by id";

/// What a bridge of 0.2.0 reports.
pub const OLD_BRIDGE: &str = "select tidings_report(bridge => 'old', version => '0.2.0', role => null, \
     address => 'here', client_address => null, started_at => now(), pid => pg_backend_pid(), \
     backend_start => (select backend_start from pg_stat_activity where pid = pg_backend_pid()), \
     state => 'awake', since => now(), connections => 0, clock_offset => null, minute => null, \
     seen => 0, sent => 0, delays => '{}')";

/// Whether INSERTs need not look for bridges that deliver no topics.
const ALL_DELIVER: &str = "select pg_sequence_last_value('tidings_all_deliver_topics') is not null";

const SEND: &str = "insert into notifications (topic, text) values ('project:7', 'x')";

async fn texts(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.expect(query);
    rows.iter().map(|row| row.get(0)).collect()
}

async fn is(client: &Client, query: &str) -> bool {
    client.query_one(query, &[]).await.expect(query).get(0)
}

/// Each of these must fail with this code.
async fn refused(client: &Client, code: &SqlState, statements: &[&str]) {
    for statement in statements {
        let outcome = client.batch_execute(statement).await;
        let error = outcome.expect_err(statement);
        assert_eq!(error.code(), Some(code), "{statement}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribing_and_unsubscribing_say_whether_they_changed_anything() {
    let database = Database::migrated().await;
    let application = database.connect().await;
    for (call, changes) in [
        ("select subscribe('alice', 'project:7')", true),
        ("select subscribe('alice', 'project:7')", false),
        ("select subscribe(7, 'project:7')", true),
        ("select unsubscribe('7', 'project:7')", true),
        ("select unsubscribe(7, 'project:7')", false),
        ("select unsubscribe('alice', 'project')", false),
        ("select unsubscribe('alice', 'PROJECT:7')", false),
    ] {
        assert_eq!(is(&application, call).await, changes, "{call}");
    }
    assert_eq!(
        texts(&application, SUBSCRIPTIONS).await,
        ["alice project:7"]
    );
    let bridge = database.bridge().connect().await;
    assert_eq!(
        texts(&bridge, CHANGES).await,
        ["alice project:7", "7 project:7", "7 project:7"]
    );
    application
        .batch_execute("delete from topic_subscriptions")
        .await
        .expect("all memberships");
    assert_eq!(texts(&bridge, CHANGES).await.len(), 4);
    database
        .owner()
        .execute("truncate topic_subscriptions")
        .await;
    assert_eq!(texts(&bridge, CHANGES).await[4], "- -");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_membership_or_a_topic_can_not_be_is_rejected() {
    let database = Database::migrated().await;
    let application = database.connect().await;
    refused(
        &application,
        &SqlState::INVALID_PARAMETER_VALUE,
        &["select subscribe('alice', '*')"],
    )
    .await;
    refused(
        &application,
        &SqlState::NOT_NULL_VIOLATION,
        &[
            "select subscribe(null::text, 'x')",
            "select subscribe('alice', null)",
        ],
    )
    .await;
    refused(
        &application,
        &SqlState::CHECK_VIOLATION,
        &[
            "select subscribe('', 'x')",
            "select subscribe('alice', '')",
            "select subscribe('alice', repeat('x', 256))",
            r"select subscribe('alice', E'x\n')",
            r"select subscribe('alice', E'x\u0085')",
            "insert into notifications (text) values ('x')",
            "insert into notifications (user_id, topic, text) values ('alice', 'x', 'x')",
            "select send_to_topic(null, 'x')",
            "select send_to_topic('', 'x')",
            r"select send_to_topic(E'\u001b]0;x', 'x')",
            "select send_to_topic(repeat('x', 256), 'x')",
            "select send_to_topic('x', 'x', 'tidings.gap')",
        ],
    )
    .await;
    let owner = database.owner().connect().await;
    refused(
        &owner,
        &SqlState::FEATURE_NOT_SUPPORTED,
        &["select subscribe('alice', 'x'); update topic_subscriptions set topic = 'y'"],
    )
    .await;
    // Names are data.
    let odd = "'; drop table notifications; --";
    let subscribed = application
        .query_one("select subscribe($1, $1)", &[&odd])
        .await;
    assert!(subscribed.expect("a membership").get::<_, bool>(0));
    let sent = application
        .query_one("select send_to_topic($1, 'x') > 0", &[&odd])
        .await;
    assert!(sent.expect("an id").get::<_, bool>(0));
    let all = "select send_to_everyone('hello', 'news', now() + interval '1 hour', 'r:1') > 0";
    assert!(is(&application, all).await);
    let kept = "select concat_ws(' ', topic, text, event, ref) from notifications order by id";
    assert_eq!(
        texts(&owner, kept).await,
        [format!("{odd} x"), "* hello news r:1".to_owned()]
    );
}

/// The membership begins after what was committed while it waited. With the snapshot of its INSERT,
/// rows that the former membership has received would belong to it, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_waited_for_the_end_of_the_former_one_begins_after_it() {
    let database = Database::migrated().await;
    let (leaving, joining) = (database.connect().await, database.connect().await);
    leaving
        .batch_execute(
            "select subscribe('alice', 'x'); begin; select send_to_topic('x', 'before'); \
             select unsubscribe('alice', 'x')",
        )
        .await
        .expect("a removal");
    let subscribe = async { is(&joining, "select subscribe('alice', 'x')").await };
    let commit = async {
        database
            .superuser()
            .until(
                "select exists (select from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock')",
            )
            .await;
        leaving.batch_execute("commit").await.expect("a commit");
    };
    let (subscribed, ()) = tokio::join!(subscribe, commit);
    assert!(subscribed);
    let owner = database.owner().connect().await;
    let sees = "select pg_visible_in_snapshot(n.xid, s.since) and n.xid <> s.xid \
                from notifications as n cross join topic_subscriptions as s";
    assert!(is(&owner, sees).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_membership_is_on_disk_before_anybody_sees_it() {
    let database = Database::migrated().await;
    let application = database.connect().await;
    for (setting, work, then) in [
        ("off", "select unsubscribe('alice', 'x')", "local"),
        ("off", "delete from topic_subscriptions", "local"),
        ("off", "select subscribe('alice', 'y')", "off"),
        (
            "remote_apply",
            "select unsubscribe('alice', 'x')",
            "remote_apply",
        ),
    ] {
        let begin = format!(
            "begin; set local synchronous_commit = {setting}; select subscribe('alice', 'x')"
        );
        application
            .batch_execute(&begin)
            .await
            .expect("a membership");
        application.batch_execute(work).await.expect(work);
        let shown = texts(&application, "show synchronous_commit").await;
        assert_eq!(shown, [then], "{setting}: {work}");
        application.batch_execute("rollback").await.expect("an end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_for_a_topic_is_rejected_while_a_bridge_is_connected_that_delivers_none() {
    let database = Database::migrated().await;
    let application = database.connect().await;
    application.batch_execute(SEND).await.expect("no bridge");
    let bridge = database.bridge().connect().await;
    bridge.batch_execute(OLD_BRIDGE).await.expect("a report");
    for work in [
        SEND,
        "select send_to_topic('project:7', 'x')",
        "select send_to_everyone('x')",
        "insert into notifications (user_id, topic, text) values ('a', null, 'x'), (null, 'b', 'x')",
    ] {
        let error = application.batch_execute(work).await.expect_err(work);
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
        let message = error.as_db_error().expect("an error").message();
        assert!(message.contains("version 0.2.0"), "{message}");
    }
    database
        .execute("select send_notification('alice', 'x')")
        .await;
    let shown = "select topics from tidings_bridges";
    assert!(!is(&bridge, shown).await);
    bridge
        .batch_execute("select tidings_report_topics('old')")
        .await
        .expect("a report");
    assert!(is(&bridge, shown).await);
    application.batch_execute(SEND).await.expect("a new bridge");
    // One that is gone doesn't count.
    let other = database.bridge().connect().await;
    let report = OLD_BRIDGE.replace("'old'", "'other'");
    other.batch_execute(&report).await.expect("a report");
    application
        .batch_execute(SEND)
        .await
        .expect_err("an old one");
    drop(other);
    while application.batch_execute(SEND).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_reports_that_it_delivers_topics() {
    let database = Database::migrated().await;
    let _bridge = Bridge::start(&database).await;
    let monitor = database.superuser();
    monitor
        .until("select exists (select from tidings_bridges where topics)")
        .await;
    // INSERTs need not look for others.
    monitor.until(ALL_DELIVER).await;
    let application = database.connect().await;
    application.batch_execute(SEND).await.expect("a row");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_delivers_no_topics_is_seen_whatever_others_report_meanwhile() {
    let database = Database::migrated().await;
    let (application, watcher) = (
        database.connect().await,
        database.superuser().connect().await,
    );
    let (old, new) = (
        database.bridge().connect().await,
        database.bridge().connect().await,
    );
    let report = OLD_BRIDGE.replace("'old'", "'new'");
    let report = format!("{report}, tidings_report_topics('new')");
    new.batch_execute(&report).await.expect("a report");
    assert!(is(&watcher, ALL_DELIVER).await);
    let first = format!("begin; {OLD_BRIDGE}");
    old.batch_execute(&first).await.expect("a report");
    // While the first report of the other bridge can't be seen, nobody says that there is none.
    assert!(!is(&watcher, ALL_DELIVER).await);
    let reporting = timeout(PATIENCE, new.batch_execute(&report)).await;
    reporting.expect("it doesn't wait").expect("a report");
    assert!(!is(&watcher, ALL_DELIVER).await);
    old.batch_execute("commit").await.expect("a report");
    new.batch_execute(&report).await.expect("a report");
    assert!(!is(&watcher, ALL_DELIVER).await);
    application
        .batch_execute(SEND)
        .await
        .expect_err("an old one");
    let upgraded = format!("{OLD_BRIDGE}, tidings_report_topics('old')");
    old.batch_execute(&upgraded).await.expect("a report");
    assert!(is(&watcher, ALL_DELIVER).await);
    application.batch_execute(SEND).await.expect("a row");
}

/// A table with memberships, which belongs to the application.
async fn with_members() -> (Database, Client) {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute("create schema app; grant create, usage on schema app to application")
        .await;
    let application = database.connect().await;
    application
        .batch_execute(
            r#"create table app."Project's members" (id serial, "the user" int, project bigint);
               insert into app."Project's members" ("the user", project) values (1, 1), (2, 1)"#,
        )
        .await
        .expect("a table");
    (database, application)
}

const WATCH: &str =
    r#"select tidings_watch('app."Project''s members"', 'the user', 'project', E'it''s \\ %I:')"#;

const UNIQUE: &str = r#"create unique index on app."Project's members" ("the user", project)"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_tables_memberships_are_copied_and_kept_equal() {
    let (database, application) = with_members().await;
    let missing = &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE;
    refused(&application, missing, &[WATCH]).await;
    application.batch_execute(UNIQUE).await.expect(UNIQUE);
    // What the table doesn't contain isn't a membership of its topics.
    let wrong = r"select subscribe('9', E'it''s \\ %I:1'), subscribe('9', 'other')";
    application.batch_execute(wrong).await.expect(wrong);
    application.batch_execute(WATCH).await.expect(WATCH);
    let prefix = r"it's \ %I:";
    let topic = |user, project| format!("{user} {prefix}{project}");
    let other = "9 other".to_owned();
    let owner = database.owner().connect().await;
    let since = "select string_agg(xid::text, ' ' order by user_id) from topic_subscriptions \
                 where topic like 'it%1'";
    let former = texts(&owner, since).await;
    assert_eq!(
        texts(&owner, SUBSCRIPTIONS).await,
        [topic(1, 1), topic(2, 1), other.clone()]
    );
    // Again: nothing changes, and the memberships stay the same ones.
    let work = format!(
        r#"{WATCH}; update app."Project's members" set project = project;
           update app."Project's members" set id = -id"#
    );
    application.batch_execute(&work).await.expect(&work);
    assert_eq!(texts(&owner, since).await, former);
    for (change, memberships) in [
        (
            "insert into app.m values (default, 3, 1), (default, null, 1), (default, 4, null)",
            vec![topic(1, 1), topic(2, 1), topic(3, 1)],
        ),
        (
            r#"update app.m set project = 2 where "the user" in (1, 3)"#,
            vec![topic(1, 2), topic(2, 1), topic(3, 2)],
        ),
        (
            r#"update app.m set "the user" = 5 where "the user" = 2"#,
            vec![topic(1, 2), topic(3, 2), topic(5, 1)],
        ),
        (
            r#"delete from app.m where "the user" in (1, 5)"#,
            vec![topic(3, 2)],
        ),
        (
            r#"insert into app.m ("the user", project) values (6, 2) on conflict do nothing"#,
            vec![topic(3, 2), topic(6, 2)],
        ),
        (
            "begin; delete from app.m; rollback",
            vec![topic(3, 2), topic(6, 2)],
        ),
        ("truncate app.m", vec![]),
    ] {
        let change = change.replace("app.m", r#"app."Project's members""#);
        application.batch_execute(&change).await.expect(&change);
        let memberships = [memberships, vec![other.clone()]].concat();
        assert_eq!(texts(&owner, SUBSCRIPTIONS).await, memberships, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_table_may_only_tell_whose_memberships_changed() {
    let (database, application) = with_members().await;
    let watch = r#"select tidings_watch('app."Project''s members"', 'the user')"#;
    application.batch_execute(watch).await.expect(watch);
    application
        .batch_execute(
            r#"insert into app."Project's members" ("the user") values (3), (3), (null), (4);
               update app."Project's members" set "the user" = 5 where "the user" = 4;
               truncate app."Project's members""#,
        )
        .await
        .expect("changes");
    let bridge = database.bridge().connect().await;
    let mut changes = texts(&bridge, CHANGES).await;
    assert_eq!([&changes[0], &changes[5]], ["- -", "- -"]);
    changes[1..5].sort();
    assert_eq!(changes[1..5], ["3 -", "4 -", "4 -", "5 -"]);
    assert_eq!(texts(&application, SUBSCRIPTIONS).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_a_table_gives_nobody_a_privilege() {
    let (database, application) = with_members().await;
    application.batch_execute(UNIQUE).await.expect(UNIQUE);
    application.batch_execute(WATCH).await.expect(WATCH);
    // Not the owner of the table.
    database
        .superuser()
        .execute("create table app.others (a text, b text, unique (a, b))")
        .await;
    refused(
        &application,
        &SqlState::INSUFFICIENT_PRIVILEGE,
        &[
            "select tidings_watch('app.others', 'a', 'b', 'x:')",
            "select tidings_watch('notifications', 'user_id')",
        ],
    )
    .await;
    refused(
        &application,
        &SqlState::INVALID_PARAMETER_VALUE,
        &[
            r#"select tidings_watch('app."Project''s members"', 'the user', 'project', '')"#,
            r#"select tidings_watch('app."Project''s members"', 'the user', 'project')"#,
            r#"select tidings_watch('app."Project''s members"', null)"#,
            "select tidings_sync_memberships('', '{}', '{}')",
            "select tidings_sync_memberships('x:', '{alice}', '{y:1}')",
        ],
    )
    .await;
    refused(
        &application,
        &SqlState::UNDEFINED_COLUMN,
        &[r#"select tidings_watch('app."Project''s members"', 'the user"')"#],
    )
    .await;
    refused(
        &application,
        &SqlState::ACTIVE_SQL_TRANSACTION,
        &[&format!(
            "begin transaction isolation level repeatable read; {WATCH}"
        )],
    )
    .await;
    application.batch_execute("rollback").await.expect("an end");

    // Code of the table's owner is not called by the owner of Tidings: neither the cast of a type,
    // nor what a temporary view stands for where a trigger has no transition table.
    application
        .batch_execute(
            "create table app.caught (who text); grant all on app.caught to public; \
             create function app.catch(text) returns text language plpgsql volatile as $$ begin \
               insert into app.caught values (current_user); return $1; end $$; \
             create type app.mood as enum ('fine'); \
             create function app.text(app.mood) returns text language sql volatile as \
               'select app.catch(''x'')'; \
             create cast (app.mood as text) with function app.text(app.mood); \
             create table app.moods (u app.mood, t text); \
             create trigger forged after insert on app.moods referencing new table as added \
               for each statement execute function tidings_watched('u', 't', 'x:'); \
             create table app.plain (u text, t text); \
             create temporary view added as select app.catch('alice') as u, app.catch('t') as t; \
             create trigger forged after insert on app.plain \
               for each statement execute function tidings_watched('u', 't', 'x:')",
        )
        .await
        .expect("traps");
    for work in [
        "insert into app.moods values ('fine', 'x')",
        "insert into app.plain values ('alice', 'x')",
    ] {
        application.batch_execute(work).await.expect_err(work);
    }
    assert_eq!(
        texts(&application, "select who from app.caught").await,
        [""; 0]
    );
    let unfit = "select tidings_watch('app.moods', 'u')";
    refused(&application, &SqlState::UNDEFINED_COLUMN, &[unfit]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_leaves_a_watched_table_usable() {
    let (database, application) = with_members().await;
    application.batch_execute(UNIQUE).await.expect(UNIQUE);
    application.batch_execute(WATCH).await.expect(WATCH);
    run(&database.superuser(), &["uninstall", "--yes"])
        .await
        .well();
    application
        .batch_execute(r#"delete from app."Project's members""#)
        .await
        .expect("a change");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_counted() {
    let database = Database::migrated().await;
    database
        .execute(
            "select subscribe('alice', 'a'), subscribe('bob', 'a'), subscribe('bob', 'b'); \
             select send_to_topic('a', 'x'), send_to_topic('c', 'x'), send_to_topic('c', 'x'), \
               send_to_everyone('x'), send_notification('alice', 'x')",
        )
        .await;
    let monitor = database.monitor().connect().await;
    let counted = "select concat_ws(' ', topic, subscribers, notifications, newest is not null) \
                   from tidings_topics order by topic collate \"C\"";
    assert_eq!(
        texts(&monitor, counted).await,
        ["* 0 1 t", "a 2 1 t", "b 1 0 f", "c 0 2 t"]
    );
    // They are pending for nobody in particular.
    let pending = "select user_id || ' ' || pending from tidings_pending";
    assert_eq!(texts(&monitor, pending).await, ["alice 1"]);
}
