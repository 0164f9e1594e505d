//! `--mark`: rows that were sent are marked in the application's table, and nothing that the
//! application does there delays deliveries or marks.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::{copied, rows, with_app, with_notes};
use crate::{
    command_line::run,
    support::{bridge::Bridge, database::Database, process::Served},
};

/// How long a row may take from its INSERT to the mark in notifications, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);

const NOTES: [&str; 6] = [
    "adopt",
    "app.notes",
    "--user=user_id",
    "--text=text",
    "--mark=sent",
    "--apply",
];

/// A role that can act as the owner of Tidings has to agree.
async fn with_marked_notes() -> Database {
    let database = with_notes().await;
    run(&database.superuser(), &NOTES).await.well();
    database
}

const INSERT: &str = "insert into app.notes (user_id, text) values (7, 'x') returning id";

async fn insert(client: &Client) -> i64 {
    client.query_one(INSERT, &[]).await.expect(INSERT).get(0)
}

fn is_sent(id: i64) -> String {
    format!("select sent from app.notes where id = {id}")
}

/// The owner of Tidings may not read the application's table.
async fn until(database: &Database, query: &str) {
    database.superuser().until(query).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_sent_is_marked_in_the_table_whatever_the_types() {
    let database = with_app().await;
    let superuser = database.superuser();
    for (index, (key, mark, user, value)) in [
        (
            "bigint generated always as identity",
            "boolean not null default false",
            "alice",
            "default",
        ),
        (
            "uuid default gen_random_uuid()",
            "timestamptz",
            "alice",
            "default",
        ),
        // A cast to this length would find another row.
        ("varchar(3) default 'abc'", "timestamp", "bob", "default"),
        ("int default 7", "boolean", "alice", "null"),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("app.t{index}");
        let create =
            format!("create table {table} (id {key} primary key, u text, \"is Sent\" {mark})");
        database.execute(&create).await;
        let arguments = [
            "adopt",
            &table,
            "--user=u",
            "--text='x'",
            "--mark=\"is Sent\"",
            "--apply",
        ];
        run(&superuser, &arguments).await.well();
        let insert = format!("insert into {table} (u, \"is Sent\") values ('{user}', {value})");
        database.execute(&insert).await;
    }
    let similar = "insert into notifications (user_id, text, ref) values ('alice', 'x', 't2:abcd')";
    database.execute(similar).await;
    let bridge = Bridge::start(&database).await;
    let _alice = bridge.connect("alice").await;
    for (index, set) in [
        (0, "\"is Sent\""),
        (1, "abs(extract(epoch from now() - \"is Sent\")) < 300"),
        (3, "\"is Sent\" is true"),
    ] {
        until(
            &database,
            &format!("select coalesce({set}, false) from app.t{index}"),
        )
        .await;
    }
    until(&database, "select \"is Sent\" is null from app.t2").await;
    let _bob = bridge.connect("bob").await;
    until(&database, "select \"is Sent\" is not null from app.t2").await;
    // A row of nobody who is connected stays as it is.
    database
        .execute("insert into app.t0 (u) values ('carol'), ('alice')")
        .await;
    until(&database, "select \"is Sent\" from app.t0 where id = 3").await;
    let client = superuser.connect().await;
    let unsent = "select u from app.t0 where not \"is Sent\"";
    assert_eq!(rows(&client, unsent).await, ["carol"]);
}

/// A ref is the same whatever the session's settings, and is read as the type of the key.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_fixed_length_dates_and_columns_of_any_name_are_no_obstacle() {
    let database = with_app().await;
    let superuser = database.superuser();
    let keys = [
        ("char(8)", "abc", "abc"),
        ("bit(4)", "1010", "1010"),
        ("date", "2.11.2026", "2026-11-02"),
        (
            "timestamptz",
            "2.11.2026 10:00 UTC",
            "2026-11-02 10:00:00+00",
        ),
    ];
    for (index, (key, value, _)) in keys.iter().enumerate() {
        let table = format!("app.t{index}");
        // Its columns are named as the variables of the function are.
        let create = format!(
            "create table {table} \
               (id {key} primary key, u text, sent boolean, refs text, failure text, half int)"
        );
        database.execute(&create).await;
        let arguments = [
            "adopt",
            &table,
            "--user=u",
            "--text='x'",
            "--mark=sent",
            "--apply",
        ];
        run(&superuser, &arguments).await.well();
        let insert = format!(
            "set datestyle = german; set timezone = 'UTC'; insert into {table} values ('{value}', 'alice')"
        );
        database.execute(&insert).await;
    }
    let expected = keys.iter().enumerate();
    let expected = expected.map(|(index, (_, _, written))| format!("alice|x|-|t{index}:{written}"));
    assert_eq!(copied(&database).await, expected.collect::<Vec<_>>());
    let bridge = Bridge::start(&database).await;
    let _alice = bridge.connect("alice").await;
    for index in 0..keys.len() {
        until(&database, &format!("select sent is true from app.t{index}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_is_skipped_at_once_and_marked_once_it_is_free() {
    let database = with_marked_notes().await;
    let client = database.connect().await;
    let (locked, free) = (insert(&client).await, insert(&client).await);
    let lock = format!("begin; select from app.notes where id = {locked} for update");
    client.batch_execute(&lock).await.expect(&lock);
    // Sent only now.
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("7").await;
    until(&database, &is_sent(free)).await;
    database
        .until("select bool_and(sent) from public.notifications")
        .await;
    assert!(!sent(&database, locked).await);
    // Meanwhile everything goes on.
    let other = insert(&database.connect().await).await;
    source.next_event().await;
    until(&database, &is_sent(other)).await;
    assert!(!sent(&database, locked).await);
    // Waiting for the lock would be a failure.
    let metrics = bridge.admin("/metrics").await.text().await;
    assert!(
        metrics.contains("tidings_adopted_mark_failures_total 0"),
        "{metrics}"
    );
    client.batch_execute("commit").await.expect("a commit");
    until(&database, &is_sent(locked)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_never_ends_delays_neither_rows_nor_marks() {
    let database = with_marked_notes().await;
    let superuser = database.superuser();
    superuser
        .execute(
            "create function app.sleep() returns trigger language plpgsql as \
               'begin perform pg_sleep(600); return new; end'; \
             create trigger sleep before update on app.notes for each row execute function app.sleep()",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("7").await;
    let client = database.connect().await;
    for turn in 0..5 {
        let begin = Instant::now();
        insert(&client).await;
        source.next_event().await;
        let marked = format!(
            "select count(*) = {} from public.notifications where sent",
            turn + 1
        );
        database.until(&marked).await;
        assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
        bridge.until_ready_is(200).await;
    }
    assert!(!sent(&database, 1).await);
    let failing = |tables: u32| {
        let line = format!("tidings_adopted_tables_failing {tables}");
        move |metrics: &str| metrics.lines().any(|other| other == line)
    };
    let metrics = bridge.until_metrics(failing(1), "a table that fails").await;
    assert!(
        !metrics.contains("tidings_adopted_mark_failures_total 0"),
        "{metrics}"
    );
    // The server cancels the calls, so this gets its lock.
    let drop = "set lock_timeout = '10s'; drop trigger sleep on app.notes";
    superuser.execute(drop).await;
    until(&database, "select bool_and(sent) from app.notes").await;
    bridge
        .until_metrics(failing(0), "no table that fails")
        .await;
    bridge.stop().await;
}

/// Neither those that are sent later nor those whose marks were lost before.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_trigger_never_ends_keeps_no_other_from_being_marked() {
    let database = with_marked_notes().await;
    let superuser = database.superuser();
    superuser
        .execute(
            "create function app.sleep() returns trigger language plpgsql as \
               'begin if new.text = ''slow'' then perform pg_sleep(600); end if; return new; end'; \
             create trigger sleep before update on app.notes for each row execute function app.sleep()",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    let _source = bridge.connect_live("7").await;
    let client = database.connect().await;
    let earlier = insert(&client).await;
    until(&database, &is_sent(earlier)).await;
    let slow = "insert into app.notes (user_id, text) values (7, 'slow') returning id";
    let slow: i64 = client.query_one(slow, &[]).await.expect("an id").get(0);
    let later = insert(&client).await;
    until(&database, &is_sent(later)).await;
    let lose = format!("update app.notes set sent = false where id in ({earlier}, {later})");
    client.batch_execute(&lose).await.expect(&lose);
    for id in [earlier, later] {
        until(&database, &is_sent(id)).await;
    }
    assert!(!sent(&database, slow).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_trigger_refuses_keeps_no_other_from_being_marked_and_is_logged() {
    let database = with_marked_notes().await;
    let superuser = database.superuser();
    superuser
        .execute(
            "create function app.refuse() returns trigger language plpgsql as \
               'begin if new.text = ''no'' then raise ''not this one''; end if; return new; end'; \
             create trigger refuse before update on app.notes for each row execute function app.refuse()",
        )
        .await;
    database
        .execute(
            "insert into app.notes (user_id, text) \
             select 7, case n when 50 then 'no' else 'yes' end from generate_series(1, 100) n",
        )
        .await;
    let mut bridge = Served::start(&database, &[]).await;
    let _source = bridge.connect_live("7").await;
    until(
        &database,
        "select count(*) filter (where sent) = 99 from app.notes",
    )
    .await;
    bridge
        .until_logged(
            "WARN",
            "could not mark all rows of app.notes that were sent, retrying: not this one",
        )
        .await;
    superuser.execute("drop trigger refuse on app.notes").await;
    until(&database, "select bool_and(sent) from app.notes").await;
    bridge
        .until_logged("INFO", "rows of app.notes are marked again")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_of_others_that_look_alike_keep_nothing_from_being_marked() {
    let database = with_marked_notes().await;
    database
        .execute(
            "insert into notifications (user_id, text, ref) \
             select '7', 'x', 'notes:' || r \
             from unnest(array['', 'abc', '-1', '99999999999999999999', '1.5', 'notes:1']) as r",
        )
        .await;
    let client = database.connect().await;
    let unsent = "insert into app.notes (user_id, text) values (8, 'not sent') returning id";
    let unsent: i64 = client.query_one(unsent, &[]).await.expect("an id").get(0);
    let id = insert(&client).await;
    let bridge = Bridge::start(&database).await;
    let _source = bridge.connect_live("7").await;
    until(&database, &is_sent(id)).await;
    database
        .until("select count(*) = 7 from public.notifications where sent")
        .await;
    assert!(!sent(&database, unsent).await);
}

/// Reading a large table for lost marks takes long, so that is not relied on here.
#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_itself_tries_again_what_was_locked_or_failed() {
    let database = with_marked_notes().await;
    let superuser = database.superuser().connect().await;
    let sweep = "begin; select from tidings_adopted for update";
    superuser.batch_execute(sweep).await.expect(sweep);
    let client = database.connect().await;
    let (locked, other) = (insert(&client).await, insert(&client).await);
    let lock = format!("begin; select from app.notes where id = {locked} for update");
    client.batch_execute(&lock).await.expect(&lock);
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("7").await;
    until(&database, &is_sent(other)).await;
    client.batch_execute("commit").await.expect("a commit");
    until(&database, &is_sent(locked)).await;
    // Nothing at all can be marked for a while.
    let lock = "begin; lock table app.notes in exclusive mode";
    client.batch_execute(lock).await.expect(lock);
    let id = insert(&client).await;
    client.batch_execute("commit").await.expect("a commit");
    client.batch_execute(lock).await.expect(lock);
    source.next_event().await;
    let failed = |metrics: &str| {
        let mut lines = metrics.lines();
        !lines.any(|line| line == "tidings_adopted_mark_failures_total 0") && !metrics.is_empty()
    };
    bridge.until_metrics(failed, "a failure").await;
    client.batch_execute("commit").await.expect("a commit");
    until(&database, &is_sent(id)).await;
    superuser
        .batch_execute("rollback")
        .await
        .expect("a rollback");
}

/// As after a crash of the bridge, or when too many ids were waiting.
#[tokio::test(flavor = "multi_thread")]
async fn marks_that_were_lost_are_found_again_with_any_number_of_bridges() {
    let database = with_marked_notes().await;
    let bridges = [
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    ];
    let _source = bridges[0].connect_live("7").await;
    let client = database.connect().await;
    let insert =
        "insert into app.notes (user_id, text) select 7, 'x' from generate_series(1, 2500)";
    client.batch_execute(insert).await.expect(insert);
    let all = "select bool_and(sent) from app.notes";
    until(&database, all).await;
    let lose = "update app.notes set sent = false where id in (1, 1250, 2500)";
    client.batch_execute(lose).await.expect(lose);
    until(&database, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_would_run_as_tidings_is_not_called() {
    let database = with_marked_notes().await;
    database
        .execute(
            "create table app.caught (who text); grant insert on app.caught to public; \
             create or replace function app.tidings_mark_notes(refs text[]) returns text \
               language plpgsql security invoker as 'begin \
                 insert into app.caught values (current_user); return null; end'",
        )
        .await;
    let bridge = Bridge::start(&database).await;
    let _source = bridge.connect_live("7").await;
    insert(&database.connect().await).await;
    database
        .until("select bool_and(sent) from public.notifications")
        .await;
    let told = run(&database.superuser(), &["check"]).await.badly();
    assert!(told.contains("1 problem found"), "{told}");
    // With the privileges of its owner, it is called.
    database
        .execute("alter function app.tidings_mark_notes(text[]) security definer")
        .await;
    until(&database, "select count(*) > 0 from app.caught").await;
    let caught = "select distinct who from app.caught";
    let client = database.superuser().connect().await;
    assert_eq!(rows(&client, caught).await, ["application"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_is_added_later_is_noticed_without_a_restart_and_earlier_rows_are_marked() {
    let database = with_notes().await;
    let arguments = [
        "adopt",
        "app.notes",
        "--user=user_id",
        "--text=text",
        "--apply",
    ];
    run(&database.as_role("application"), &arguments)
        .await
        .well();
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("7").await;
    insert(&database.connect().await).await;
    source.next_event().await;
    database
        .until("select bool_and(sent) from public.notifications")
        .await;
    run(&database.superuser(), &NOTES).await.well();
    until(&database, "select bool_and(sent) from app.notes").await;
}

async fn sent(database: &Database, id: i64) -> bool {
    let client = database.superuser().connect().await;
    let query = is_sent(id);
    client.query_one(&query, &[]).await.expect(&query).get(0)
}
