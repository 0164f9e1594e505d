//! Pruning: old rows are removed once their time is over, no other rows are, and no other session
//! has to wait.

use std::process::{Output, Stdio};

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use crate::support::{
    bridge::{Bridge, NONE_RECENT},
    database::{Database, start_cluster},
    expect_gap, process, row_id, until,
};

/// Inserts rows that were sent two hours ago.
async fn fill(database: &Database, rows: u32) {
    let fill = format!(
        "insert into notifications (user_id, text, created_at, sent_at) \
         select 'bob', 'old', now() - interval '3 hours', now() - interval '2 hours' \
         from generate_series(1, {rows})"
    );
    database.owner().execute(&fill).await;
}

fn spawn(database: &Database, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tidings"))
        .arg("prune")
        .args(arguments)
        .env("DATABASE_URL", database.connection_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary")
}

async fn prune(database: &Database, arguments: &[&str]) -> Output {
    let running = spawn(database, arguments).wait_with_output();
    running.await.expect("an output")
}

/// Prune's standard output: one line. It must succeed and leave standard error empty.
async fn said_by(database: &Database, arguments: &[&str]) -> String {
    let output = prune(database, arguments).await;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && complaint.is_empty(),
        "{complaint}"
    );
    String::from_utf8(output.stdout).expect("text")
}

async fn complaint_of(database: &Database, arguments: &[&str]) -> String {
    let output = prune(database, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    said
}

async fn count(database: &Database) -> i64 {
    let count = "select count(*) from notifications";
    database.ids(count).await[0]
}

async fn removed(client: &Client, batch: &str) -> Option<i64> {
    let row = client.query_opt(batch, &[]).await.expect(batch);
    row.map(|row| row.get("removed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_long_ago_or_has_expired_goes_and_nothing_else() {
    let database = Database::migrated().await;
    // Created, sent, expires: in hours from now.
    let kept = [
        ("-2000", "null", "null"),
        ("-2000", "null", "10"),
        ("-2000", "null", "-0.5"),
        ("-2000", "null", "'infinity'"),
        ("-2000", "-700", "null"),
        ("-10", "-10", "null"),
        ("-10", "-10", "10"),
        ("0", "null", "null"),
        // A young row isn't removed, even if a bridge or a writer forges one of its times.
        ("0", "-2000", "null"),
        ("0", "null", "-2000"),
    ];
    let goes = [
        ("-2000", "-800", "null"),
        ("-2000", "-800", "10"),
        ("-2000", "-2000", "-1500"),
        ("-2000", "null", "-2"),
        ("-10", "null", "-2"),
        ("-10", "-9", "-2"),
    ];
    let owner = database.owner().connect().await;
    let hours = |number: &str| match number {
        "null" | "'infinity'" => format!("{number}::timestamptz"),
        hours => format!("now() + interval '{hours} hours'"),
    };
    // Interleaved, each in a transaction of its own.
    let rows = kept.iter().map(|row| (row, "kept"));
    for ((made, sent, ends), text) in rows.chain(goes.iter().map(|row| (row, "goes"))) {
        let insert = format!(
            "insert into notifications (user_id, text, created_at, sent_at, expires_at) \
             values ('alice', '{text}', {}, {}, {})",
            hours(made),
            hours(sent),
            hours(ends)
        );
        owner.batch_execute(&insert).await.expect(&insert);
    }
    // More than one batch, behind rows that stay.
    owner
        .batch_execute(
            "insert into notifications (user_id, text, created_at, sent_at) \
             select 'bob', case when n > 1500 then 'goes' else 'kept' end, \
               now() - interval '2000 hours', \
               case when n > 1500 then now() - interval '1000 hours' end \
             from generate_series(1, 4000) n; \
             insert into tidings_drained values ('bob', '7', 7), ('carol', '7', 7); \
             insert into tidings_disconnections (user_id, created_at) \
               values ('alice', now() - interval '25 hours'), ('alice', now()); \
             insert into stream_tickets (hash, user_id, created_at, expires_at) \
               select sha256(convert_to(n::text, 'UTF8')), 'alice', \
                 now() - n * interval '2 hours', now() - (n * 2 - 1) * interval '1 hour' \
               from generate_series(0, 1) n",
        )
        .await
        .expect("rows");
    owner
        .batch_execute(
            "insert into notifications (user_id, text, created_at, sent_at) \
             values ('carol', 'goes', now() - interval '2000 hours', now() - interval '1000 hours')",
        )
        .await
        .expect("the youngest that goes");
    let youngest = "select xid::text::bigint from notifications where user_id = 'carol'";
    let youngest = database.ids(youngest).await;
    let expected = "select id from notifications where text = 'kept' order by id";
    let expected = database.ids(expected).await;
    let before = count(&database).await;

    let counted = said_by(&database, &["--sent-before=30d", "--dry-run"]).await;
    assert_eq!(
        counted,
        "2507 rows would be removed: 2504 sent, 0 for topics, 3 expired\n"
    );
    assert_eq!(count(&database).await, before);
    // A monitor may count them too.
    let monitor = database.monitor();
    assert_eq!(
        said_by(&monitor, &["--sent-before=30d", "--dry-run"]).await,
        counted
    );

    let said = said_by(&database, &["--sent-before=30d"]).await;
    assert_eq!(said, "2507 rows removed\n");
    let left = "select id from notifications order by id";
    assert_eq!(database.ids(left).await, expected);
    let noted = "select xid::text::bigint from tidings_pruned";
    assert_eq!(database.ids(noted).await, youngest);
    // Bob still has rows.
    let drained = "select count(*) from tidings_drained where user_id = 'bob' \
                   union all select count(*) from tidings_drained";
    assert_eq!(database.ids(drained).await, [1, 1]);
    let rest = "select count(*) from tidings_disconnections where user_id = 'alice' \
                union all select count(*) from stream_tickets";
    assert_eq!(database.ids(rest).await, [1, 1]);
    let again = said_by(&database, &["--sent-before=30d"]).await;
    assert_eq!(again, "0 rows removed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_returns_is_told_of_a_gap_where_something_sent_is_gone_and_not_where_it_expired() {
    // A cluster of its own: for an event id, any transaction of the cluster that has since ended
    // could be one whose rows were removed.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start_with(&database, &[NONE_RECENT]).await;
    let mut source = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'before')")
        .await;
    let seen = source.next_event().await;
    let id = source.last_event_id().to_owned();
    source.reset();
    let insert = |ends: &str, sent: &str| {
        format!(
            "insert into notifications (user_id, text, created_at, expires_at, sent_at) \
             values ('alice', 'missed', now() - interval '3 hours', {ends}, {sent})"
        )
    };
    let long_ago = "now() - interval '2 hours'";
    let expired = [insert(long_ago, "null"), insert(long_ago, long_ago)];
    for insert in expired {
        database.owner().execute(&insert).await;
    }
    let said = said_by(&database, &["--sent-before=1h"]).await;
    assert_eq!(said, "2 rows removed\n");
    let mut source = bridge.resume("alice", &id).await;
    assert_eq!(until(&mut source, "tidings.caught-up").await.len(), 0);
    source.reset();

    database.owner().execute(&insert("null", long_ago)).await;
    database
        .execute("select send_notification('alice', 'left')")
        .await;
    let said = said_by(&database, &["--sent-before=1h"]).await;
    assert_eq!(said, "1 row removed\n");
    let mut source = bridge.resume("alice", &id).await;
    expect_gap(&mut source, "pruned").await;
    let left = until(&mut source, "tidings.caught-up").await;
    let texts: Vec<_> = left.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(texts, ["left"]);
    assert!(row_id(&left[0]) > row_id(&seen));
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_no_transaction_and_takes_later_what_was_locked() {
    let database = Database::migrated().await;
    fill(&database, 2_500).await;
    let open = database.owner().connect().await;
    open.batch_execute(
        "begin; \
         insert into notifications (user_id, text) values ('alice', 'new'); \
         select from notifications where id = 7 for update; \
         update notifications set sent_at = now() - interval '2 hours' where id = 1007; \
         select from notifications where id = 2007 for key share",
    )
    .await
    .expect("a transaction");
    let said = said_by(&database, &["--sent-before=1h"]).await;
    assert_eq!(said, "2497 rows removed\n");
    let left = "select id from notifications order by id";
    assert_eq!(database.ids(left).await, [7, 1007, 2007]);
    open.batch_execute("commit").await.expect("commit");
    let said = said_by(&database, &["--sent-before=1h"]).await;
    assert_eq!(said, "3 rows removed\n");
    assert_eq!(database.ids(left).await, [2501]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_batch_also_one_that_does_not_end() {
    let database = Database::migrated().await;
    fill(&database, 100).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let batch = "select removed from tidings_prune_batch('1 hour', 0, 10)";
    let open = database.bridge().connect().await;
    open.batch_execute("begin").await.expect("a transaction");
    assert_eq!(removed(&open, batch).await, Some(10));
    // Inserting, reading and marking don't wait.
    for n in 0..3 {
        let send = format!("select send_notification('alice', 'row {n}')");
        database.execute(&send).await;
        assert_eq!(source.next_event().await.data, format!("row {n}"));
    }
    database
        .until("select bool_and(sent) from notifications where user_id = 'alice'")
        .await;
    let id = source.last_event_id().to_owned();
    let mut returning = bridge.resume("alice", &id).await;
    assert_eq!(until(&mut returning, "tidings.caught-up").await.len(), 0);
    // Another session that prunes does nothing, and returns at once.
    let other = database.bridge().connect().await;
    assert_eq!(removed(&other, batch).await, None);
    open.batch_execute("commit").await.expect("commit");
    assert_eq!(removed(&other, batch).await, Some(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_at_once_remove_each_row_once_and_all_come_to_an_end() {
    let database = Database::migrated().await;
    fill(&database, 8_000).await;
    let one = || said_by(&database, &["--sent-before=1h"]);
    let owner = database.owner().connect().await;
    let (first, second, called) = tokio::join!(
        one(),
        one(),
        owner.batch_execute("call tidings_prune('1 hour', 100)")
    );
    called.expect("a call");
    let rows = |said: &str| -> u64 {
        let number = said.strip_suffix(" rows removed\n").expect(said);
        number.parse().expect(said)
    };
    assert!(rows(&first) + rows(&second) <= 8_000);
    assert_eq!(count(&database).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_to_stop_it_ends_with_the_batch_that_it_is_at() {
    let database = Database::migrated().await;
    fill(&database, 9_000).await;
    // Its ninth batch lasts until the test releases it.
    let held = database.owner().connect().await;
    held.batch_execute(
        "create function held() returns trigger language plpgsql as $$ begin \
           perform set_config('lock_timeout', '0', true); \
           perform pg_advisory_xact_lock(77); return old; end $$; \
         create trigger held before delete on notifications for each row \
           when (old.id = 4250) execute function held(); \
         select pg_advisory_lock(77)",
    )
    .await
    .expect("a trigger");
    let running = spawn(&database, &["--sent-before=1h"]);
    database
        .until(
            "select exists (select from pg_locks where locktype = 'advisory' and objid = 77 \
             and not granted and database = (select oid from pg_database where datname = current_database()))",
        )
        .await;
    process::signal(&running, Signal::SIGINT);
    held.batch_execute("select pg_advisory_unlock(77)")
        .await
        .expect("it goes on");
    let output = running.wait_with_output().await.expect("an end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("stopped after removing 4500 rows"), "{said}");
    assert_eq!(count(&database).await, 4_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_bridges_removes_by_itself_and_another_one_takes_over() {
    let database = Database::migrated().await;
    fill(&database, 1_500).await;
    database
        .execute("select send_notification('bob', 'young')")
        .await;
    let settings = ["--prune-sent-after=1h", "--prune-every=1s"];
    let first = Bridge::start_with(&database, &settings).await;
    let gone = "select count(*) = 1 from notifications";
    database.until(gone).await;
    let turns = "select count(*) = 1 from pg_locks \
                 where locktype = 'advisory' and classid = 1953064048 \
                   and objid = 'notifications'::regclass";
    database.until(turns).await;
    let removed = "tidings_pruned_rows_total 1500";
    first
        .until_metrics(|metrics| metrics.contains(removed), removed)
        .await;
    let log = [("TIDINGS_LOG", "warn,tidings=debug")];
    let mut second = process::Served::start_in(&database, &settings, &log).await;
    second
        .until_logged("DEBUG", "another bridge is removing old rows")
        .await;
    first.stop().await;
    fill(&database, 10).await;
    database.until(gone).await;
    second.stop().await;
    let none = "select count(*) = 0 from pg_locks \
                where classid = 1953064048 and objid = 'notifications'::regclass";
    database.until(none).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_so_only_where_it_is_allowed_and_says_what_to_grant() {
    let database = Database::migrated().await;
    fill(&database, 10).await;
    let batch = "select removed from tidings_prune_batch('1 hour')";
    for stranger in [database.connect().await, database.monitor().connect().await] {
        for statement in [batch, "call tidings_prune('1 hour')"] {
            let error = stranger
                .batch_execute(statement)
                .await
                .expect_err(statement);
            assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
        }
    }
    let application = database.as_role("application");
    let said = complaint_of(&application, &["--sent-before=1h"]).await;
    assert!(
        said.contains("grant execute on function \"public\".tidings_prune_batch"),
        "{said}"
    );
    let said = complaint_of(&database, &["--sent-before=1h", "--schema=nowhere"]).await;
    assert!(said.contains("tidings migrate"), "{said}");
    for refused in ["--sent-before=59m", "--sent-before=thirty"] {
        complaint_of(&database, &[refused]).await;
    }

    // The function can't be made to remove young rows, or everything at once.
    let bridge = database.bridge().connect().await;
    for refused in [
        "select tidings_prune_batch('59 minutes')",
        "select tidings_prune_batch('-1 month')",
        "select tidings_prune_batch(null)",
        "select tidings_prune_batch('1 hour', topics_before => '59 minutes')",
        "select tidings_prune_batch('1 hour', 0, 0)",
        "select tidings_prune_batch('1 hour', 0, 10001)",
        "select tidings_prune_batch('1 hour', 0, null)",
    ] {
        let error = bridge.batch_execute(refused).await.expect_err(refused);
        assert_eq!(
            error.code(),
            Some(&SqlState::INVALID_PARAMETER_VALUE),
            "{refused}"
        );
    }
    assert_eq!(removed(&bridge, batch).await, Some(10));

    // A bridge that is configured to prune but lacks the privilege still serves.
    database
        .owner()
        .execute("revoke execute on function tidings_prune_batch from tidings_bridge")
        .await;
    let served = process::Served::start(&database, &["--prune-sent-after=1h"]);
    let mut served = served.await;
    served
        .until_logged("WARN", "grant execute on function")
        .await;
    let mut source = served.connect("alice", None).await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    until(&mut source, "message").await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_for_topics_go_when_they_are_old_whether_they_were_sent_or_not() {
    // A cluster of its own, as above.
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    database
        .execute("select send_notification('alice', 'before')")
        .await;
    source.next_event().await;
    let id = source.last_event_id().to_owned();
    source.reset();
    bridge.stop().await;
    // In hours from now. The third was sent to somebody, and others are still to receive it.
    let owner = database.owner();
    for (topic, created, sent, expires) in [
        ("goes", "-49", "null", "null"),
        ("goes", "-49", "-48", "10"),
        ("kept", "-30", "-29", "null"),
        ("expired", "-30", "null", "-2"),
        ("kept", "-0.5", "null", "-2"),
        ("kept", "0", "null", "null"),
    ] {
        let hours = |number: &str| format!("now() + {number} * interval '1 hour'");
        owner
            .execute(&format!(
                "insert into notifications (topic, text, created_at, sent_at, expires_at) \
                 values ('{topic}', 'x', {}, {}, {})",
                hours(created),
                hours(sent),
                hours(expires)
            ))
            .await;
    }
    fill(&database, 700).await;
    owner
        .execute(
            "insert into notifications (topic, text, created_at) \
             select 'goes', 'x', now() - interval '3 days' from generate_series(1, 700)",
        )
        .await;
    let arguments = ["--sent-before=1h", "--topics-before=2d", "--dry-run"];
    assert_eq!(
        said_by(&database, &arguments).await,
        "1403 rows would be removed: 700 sent, 702 for topics, 1 expired\n"
    );
    let said = said_by(&database, &["--sent-before=1d", "--topics-before=off"]).await;
    assert_eq!(said, "1 row removed\n");
    // Those at the end are behind rows that stay.
    let said = said_by(&database, &arguments[..2]).await;
    assert_eq!(said, "1402 rows removed\n");
    let kept = "select count(*) from notifications where topic = 'kept' \
                union all select count(*) from notifications where topic = 'goes' \
                union all select count(*) from notifications where user_id = 'bob'";
    assert_eq!(database.ids(kept).await, [3, 0, 0]);
    let settings = ["--prune-topics-after=1h", "--prune-every=1s"];
    let bridge = Bridge::start_with(&database, &settings).await;
    database
        .until("select count(*) = 2 from notifications where topic is not null")
        .await;
    // What is left is still for those who return.
    let mut source = bridge.resume("alice", &id).await;
    expect_gap(&mut source, "pruned").await;
    until(&mut source, "tidings.caught-up").await;
    bridge.stop().await;
    let client = owner.connect().await;
    for call in [
        "insert into notifications (topic, text, created_at) \
         values ('goes', 'x', now() - interval '2 hours')",
        "call tidings_prune('1 day', topics_before => '1 hour')",
    ] {
        client.batch_execute(call).await.expect(call);
    }
    assert_eq!(count(&database).await, 3);
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bridges_keep_for_topics_goes_too_once_nobody_needs_it() {
    let database = Database::migrated().await;
    let owner = database.owner();
    owner
        .execute(
            "insert into tidings_membership_changes (user_id, created_at) \
             values ('old', now() - interval '25 hours'), ('new', now() - interval '23 hours'); \
             insert into tidings_cursors (user_id, system_identifier, since, timeline, durable, \
               floor, written_on) \
             select age || 'd', 7, now(), 1, '7', '7', current_date - age \
             from unnest(array[100, 400, 900]) as age",
        )
        .await;
    // As long as rows for topics stay, but a year at least.
    for (topics, kept) in [("off", 3), ("800d", 2), ("1h", 1)] {
        let topics = format!("--topics-before={topics}");
        said_by(&database, &["--sent-before=1h", &topics]).await;
        let cursors = "select count(*) from tidings_cursors";
        assert_eq!(owner.ids(cursors).await, [kept], "{topics}");
    }
    let changes = "select count(*) from tidings_membership_changes";
    assert_eq!(owner.ids(changes).await, [1]);
}

/// A scan would touch thousands of pages.
const BUFFERS: u64 = 600;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_finds_its_rows_without_reading_the_table() {
    let database = Database::migrated().await;
    let owner = database.owner().connect().await;
    owner
        .batch_execute(
            "alter table notifications set (autovacuum_enabled = off); \
             select tidings_prune_batch('1 hour'); \
             insert into notifications (user_id, text, sent_at, expires_at) \
             select 'user' || n % 100, repeat('x', 200), now(), \
               case when n % 10 = 0 then now() + interval '1 day' end \
             from generate_series(1, 100000) n; \
             insert into notifications (topic, text) \
             select 'topic' || n % 100, repeat('x', 200) from generate_series(1, 50000) n; \
             insert into tidings_cursors (user_id, system_identifier, since, timeline, durable, \
               floor) \
             select n::text, 7, now(), 1, '7', '7' from generate_series(1, 50000) n",
        )
        .await
        .expect("young rows, of which nothing is known");
    let explain = "explain (analyze, buffers, format json) \
                   select * from tidings_prune_batch('1 hour', 0, 100)";
    // Postgres may have to reread catalogs that it dropped from its caches, but not each time.
    let mut least = u64::MAX;
    for _ in 0..3 {
        let messages = owner.simple_query(explain).await.expect(explain);
        let lines = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan: serde_json::Value =
            serde_json::from_str(&lines.collect::<String>()).expect("a plan");
        let plan = &plan[0]["Plan"];
        let touched = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| plan[name].as_u64());
        least = least.min(touched.into_iter().flatten().sum());
    }
    assert!(least <= BUFFERS, "{least} buffers");
}
