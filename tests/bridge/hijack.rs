//! A role that may create objects in the schema can't make the owner or the bridge call them.

use std::{collections::BTreeSet, fs, path::Path};

use tokio_postgres::{Client, error::SqlState};

use crate::{
    command_line::run,
    support::{bridge::Bridge, database::Database},
};

/// Creates, as the role that runs it, functions and operators that could be confused with those of
/// `pg_catalog`: for each of the latter with a name in $1, and for each combination of concrete
/// types that it accepts through a polymorphic argument or an implicit cast. Each call is counted,
/// even if its transaction is rolled back.
const PLANT: &str = include_str!("hijack/plant.sql");

/// All words and operators in our SQL, from files and from functions.
async fn vocabulary(client: &Client) -> Vec<String> {
    let mut texts = Vec::new();
    for folder in ["sql", "migrations"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("a file").path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                texts.push(fs::read_to_string(path).expect("a file"));
            }
        }
    }
    let functions = "select prosrc from pg_catalog.pg_proc where pronamespace = \
                     (select oid from pg_catalog.pg_namespace where nspname = 'public')";
    let rows = client.query(functions, &[]).await.expect("functions");
    texts.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_operator = |c: char| "+-*/<>=~!@#%^&|`?".contains(c);
    let mut found = BTreeSet::new();
    for text in &texts {
        found.extend(text.split(|c| !is_word(c)).map(str::to_owned));
        found.extend(text.split(|c| !is_operator(c)).map(str::to_owned));
    }
    // Functions and operators that are called through syntax: like, between, extract, at time zone.
    let by_syntax = [
        "~~",
        "!~~",
        "extract",
        "date_part",
        "timezone",
        "overlay",
        "position",
    ];
    found.extend(by_syntax.map(str::to_owned));
    found.remove("");
    found.into_iter().collect()
}

/// Runs as a role with no other privilege than CREATE on the schema, which every role had by
/// default before PostgreSQL 15.
async fn plant(database: &Database) -> i64 {
    let superuser = database.superuser().connect().await;
    superuser
        .batch_execute(
            // Another test in this cluster may create the role at the same moment.
            "do $$ begin create role mallory login; \
             exception when duplicate_object or unique_violation then null; end $$; \
             create schema plants authorization mallory; \
             grant create on schema public to public",
        )
        .await
        .expect("a role");
    let words = vocabulary(&superuser).await;
    let mallory = database.as_role("mallory").connect().await;
    mallory.batch_execute(PLANT).await.expect("the means");
    let planted = "select plants.plant('public', $1)";
    let row = mallory.query_one(planted, &[&words]).await.expect(planted);
    // In sessions that don't set a search_path, planted objects win even over those of pg_catalog
    // with the same types.
    let name = database.name();
    let first = format!("alter database {name} set search_path to public, pg_catalog");
    superuser.batch_execute(&first).await.expect(&first);
    row.get(0)
}

async fn assert_none_was_called(database: &Database) {
    let superuser = careful(&database.superuser()).await;
    let called = "select coalesce(string_agg(name, ', '), '') from plants.called()";
    let row = superuser.query_one(called, &[]).await.expect(called);
    assert_eq!(row.get::<_, String>(0), "");
}

/// A session in which the test's own statements call only `pg_catalog`.
async fn careful(database: &Database) -> Client {
    let client = database.connect().await;
    client
        .batch_execute("set search_path to pg_catalog")
        .await
        .expect("a path");
    client
}

/// Does everything that applications, the bridge, the command line and dashboards do.
async fn use_everything(database: &Database) {
    let superuser = careful(&database.superuser()).await;
    superuser
        .batch_execute(
            "create schema shop; \
             create table shop.orders (id int generated always as identity primary key, \
               customer text, text text, sent boolean); \
             grant usage on schema shop to application; grant insert on shop.orders to application",
        )
        .await
        .expect("a table of an application");
    let adopt = [
        "adopt",
        "shop.orders",
        "--user=customer",
        "--text=text",
        "--where=text <> ''",
        "--mark=sent",
        "--existing=true",
        "--apply",
    ];
    run(&database.superuser(), &adopt).await.well();
    let bridge = Bridge::start(database).await;
    let mut alice = bridge.connect_live("alice").await;
    let application = careful(database).await;
    application
        .batch_execute(
            "insert into public.notifications (user_id, text) values ('alice', 'first'); \
             select public.send_notification('alice', 'second', 'named'); \
             select public.send_notification(7, 'with a ref', null, now() + interval '1 day', 'r'); \
             select public.send_notification(7, 'third'); \
             insert into shop.orders (customer, text) values ('alice', 'an order'); \
             select public.create_stream_ticket('bob'); \
             select public.create_stream_ticket('bob'); \
             select public.create_stream_ticket(null, '1 hour', topics => '{project:7}'); \
             delete from public.stream_tickets; \
             select public.disconnect_user('carol'); \
             select public.disconnect_user(7); \
             select public.create_stream_ticket('bob'); \
             select public.disconnect_everyone(); \
             select public.subscribe('alice', 'project:7'); \
             select public.subscribe(7, 'project:7'); \
             select public.unsubscribe(7, 'project:7'); \
             select public.tidings_memberships_changed(null)",
        )
        .await
        .expect("what applications do");
    for text in ["first", "second", "an order"] {
        assert_eq!(alice.next_event().await.data, text);
    }
    drop(alice);
    let mut returning = bridge.connect("7").await;
    while returning.next_event().await.data != "third" {}
    drop(returning);
    let superuser = careful(&database.superuser()).await;
    let marked = "select bool_and(sent) from public.notifications";
    while !superuser
        .query_one(marked, &[])
        .await
        .expect(marked)
        .get::<_, bool>(0)
    {}
    let marked = "select bool_and(sent is true) from shop.orders";
    while !superuser
        .query_one(marked, &[])
        .await
        .expect(marked)
        .get::<_, bool>(0)
    {}
    superuser
        .batch_execute(
            "update public.notifications set created_at = now() - interval '2 days', \
                sent_at = now() - interval '2 days', expires_at = null; \
             insert into public.notifications (user_id, text, created_at, expires_at) \
               values ('dora', 'late', now() - interval '3 days', now() - interval '2 days')",
        )
        .await
        .expect("old rows");
    superuser
        .batch_execute("call public.tidings_prune('1 day')")
        .await
        .expect("pruning");
    let monitor = careful(&database.monitor()).await;
    for view in [
        "pending",
        "pending_total",
        "throughput",
        "delay",
        "bridges",
        "size",
        "queue",
        "topics",
    ] {
        let read = format!("select * from public.tidings_{view}");
        monitor.query(&read, &[]).await.expect(view);
    }
    // The bridge's first report appears soon after the start.
    let told = "select count(*) > 0 from public.tidings_bridges_seen";
    while !superuser
        .query_one(told, &[])
        .await
        .expect(told)
        .get::<_, bool>(0)
    {}
    let application = database.as_role("application");
    for (role, arguments) in [
        (&application, &["send", "alice", "by hand"][..]),
        (
            &application,
            &["send", "alice", "soon over", "--expires=1h"],
        ),
        (&application, &["ticket", "alice", "--ttl=5m"]),
        (&database.owner(), &["migrate", "--dry-run"]),
        (
            &database.owner(),
            &["prune", "--sent-before=1d", "--dry-run"],
        ),
    ] {
        run(role, arguments).await.well();
    }
    // These report that every role may create objects.
    for arguments in [["check", "--json"], ["status", "--json"]] {
        let findings = run(database, &arguments).await.json();
        assert!(findings.is_object(), "{findings}");
    }
    bridge.stop().await;
    // Not while a bridge is connected that delivers no topics.
    for work in [
        "select public.send_to_topic('project:7', 'released')",
        "select public.send_to_everyone('hello')",
        "insert into public.notifications (topic, text) values ('*', 'hello')",
    ] {
        while let Err(error) = careful(database).await.batch_execute(work).await {
            assert_eq!(
                error.code(),
                Some(&SqlState::FEATURE_NOT_SUPPORTED),
                "{error:?}"
            );
        }
    }
    superuser
        .batch_execute(
            "create table shop.members (project int, customer text, unique (project, customer)); \
             insert into shop.members values (1, 'alice'); \
             select public.tidings_watch('shop.members', 'customer', 'project', 'shop:'); \
             insert into shop.members values (2, 'alice'); \
             update shop.members set project = 3 where project = 2; \
             delete from shop.members; \
             truncate shop.members; \
             select public.tidings_watch('shop.members', 'customer'); \
             insert into shop.members values (2, 'alice'); \
             drop table shop.members",
        )
        .await
        .expect("memberships of an application");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_function_or_operator_of_another_role_is_called_where_it_was_there_first() {
    let database = Database::empty().await;
    // The functions aren't installed yet, but their SQL is in the files.
    let planted = plant(&database).await;
    assert!(planted > 500, "{planted}");
    database.migrate().await;
    database.prepare("public").await;
    use_everything(&database).await;
    database.migrate().await;
    let remove = ["adopt", "--remove", "shop.orders", "--apply"];
    run(&database.superuser(), &remove).await.well();
    run(&database.owner(), &["uninstall", "--yes"]).await.well();
    assert_none_was_called(&database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_function_or_operator_of_another_role_is_called_where_it_came_later() {
    let database = Database::migrated().await;
    let planted = plant(&database).await;
    assert!(planted > 500, "{planted}");
    use_everything(&database).await;
    assert_none_was_called(&database).await;
}
