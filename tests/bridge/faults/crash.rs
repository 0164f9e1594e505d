//! Postgres crashes and reassigns transaction ids and row ids that it had not written to disk. Rows
//! that carry reassigned ids must still be delivered as new.

use std::time::Instant;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::{Cluster, Shutdown};
use tokio_postgres::Client;

use crate::support::{
    PATIENCE,
    account::Account,
    bridge::Bridge,
    database::{Database, start_forgetful_cluster},
    event_source::{End, Event, EventSource, Item},
    until,
};

/// Crashes per test. Where a crash must lose transactions, only those that did are counted.
const ROUNDS: usize = 4;

/// Transactions that each crash loses, so that their ids are assigned again after it.
const FORGOTTEN: usize = 12;

#[derive(Clone, Copy, Debug)]
enum Crash {
    /// One backend is killed, and Postgres restarts all of them.
    Backend,
    /// The whole server stops immediately.
    Server,
}

async fn crash(cluster: &mut Cluster, database: &Database, how: Crash) -> Instant {
    match how {
        Crash::Backend => {
            let (victim, other) = (database.connect().await, database.connect().await);
            let row = victim.query_one("select pg_backend_pid()", &[]).await;
            let pid: i32 = row.expect("a backend").get(0);
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
            // The server accepts connections until it notices, then closes all of them.
            while !other.is_closed() {
                tokio::task::yield_now().await;
            }
        }
        Crash::Server => cluster
            .restart(Shutdown::Immediate)
            .await
            .expect("a restart"),
    }
    Instant::now()
}

/// Opens an application's connection as soon as the server accepts connections again.
async fn connect_again(database: &Database) -> Client {
    let connecting = async {
        loop {
            let connected = database.try_connect().await;
            if let Ok(client) = connected
                && client.simple_query("select 1").await.is_ok()
            {
                return client;
            }
            tokio::task::yield_now().await;
        }
    };
    let connected = tokio::time::timeout(PATIENCE, connecting).await;
    connected.expect("it recovers")
}

/// Reads until an event with this text arrives, and returns the texts.
async fn texts_until(source: &mut EventSource, last: &str) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != last) {
        let Event { name, data, .. } = source.next_event().await;
        if !name.starts_with("tidings.") {
            texts.push(data);
        }
    }
    texts
}

async fn insert(client: &Client, text: &str) {
    let insert = "insert into notifications (user_id, text) values ('alice', $1)";
    client.execute(insert, &[&text]).await.expect(text);
}

async fn rows_of_forgotten_transactions_are_read_again(how: Crash, fault: &str) {
    let mut cluster = start_forgetful_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut open = bridge.connect_live("alice").await;
    let mut open_account = Account::without_repeats(fault);
    let mut owed_in_all: Vec<String> = Vec::new();
    let mut got_by_open: Vec<String> = Vec::new();
    // Postgres may flush its WAL on its own: then the crash loses nothing, and the round doesn't
    // count.
    let mut forgotten = 0;
    for round in 0.. {
        if forgotten == ROUNDS {
            break;
        }
        assert!(round < 10 * ROUNDS, "no crash forgets anything");
        let mut leaving = bridge.connect_live("alice").await;
        let writer = connect_again(&database).await;
        // Flushed to disk.
        let kept = format!("kept {round}");
        insert(&writer, &kept).await;
        owed_in_all.push(kept.clone());
        assert_eq!(texts_until(&mut leaving, &kept).await, [kept.as_str()]);
        // Not flushed: these transaction ids and row ids are assigned again after the crash.
        let hurried = "set synchronous_commit = off";
        writer.batch_execute(hurried).await.expect("a setting");
        for n in 0..FORGOTTEN {
            insert(&writer, &format!("forgotten {round} {n}")).await;
        }
        let last = format!("forgotten {round} {}", FORGOTTEN - 1);
        texts_until(&mut leaving, &last).await;
        got_by_open.extend(texts_until(&mut open, &last).await);
        let id = leaving.last_event_id().to_owned();
        drop(leaving);

        let crashed_at = crash(&mut cluster, &database, how).await;
        let writer = connect_again(&database).await;
        let left =
            format!("select count(*) from notifications where text like 'forgotten {round} %'");
        let left = database.ids(&left).await[0];
        if left <= 2 {
            forgotten += 1;
        }
        let mut owed = Vec::new();
        for n in 0..=FORGOTTEN {
            owed.push(format!("again {round} {n}"));
            insert(&writer, &owed[n]).await;
        }
        owed_in_all.extend(owed.clone());

        let last = owed[FORGOTTEN].as_str();
        got_by_open.extend(texts_until(&mut open, last).await);
        open_account.recovered_after(crashed_at.elapsed());
        let mut returning = bridge.resume("alice", &id).await;
        let mut missed = texts_until(&mut returning, last).await;
        // Rows from before the crash that survived it may be repeated, since the client
        // reconnected.
        missed.retain(|text| text.starts_with("again"));
        assert_eq!(missed, owed);
        let mut fresh = bridge.connect("alice").await;
        until(&mut fresh, "tidings.caught-up").await;
        database
            .until("select bool_and(sent) from notifications where text like 'again%'")
            .await;
    }
    got_by_open.retain(|text| !text.starts_with("forgotten"));
    let number = |text: &String| owed_in_all.iter().position(|owed| owed == text);
    let got: Vec<i64> = got_by_open
        .iter()
        .map(|text| number(text).map_or(-1, |index| index as i64))
        .collect();
    open_account.client(0..owed_in_all.len() as i64, &got);
    open_account.close();
    cluster.stop().await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_that_crashes_hands_out_again_is_news() {
    rows_of_forgotten_transactions_are_read_again(
        Crash::Server,
        "Postgres crashes (immediate stop), writers had not waited for the disk",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_after_a_killed_backend_is_news() {
    rows_of_forgotten_transactions_are_read_again(
        Crash::Backend,
        "one backend is killed (SIGKILL), writers had not waited for the disk",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_ids_that_were_taken_and_never_logged_hide_no_row_when_they_come_again() {
    let mut cluster = start_forgetful_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start_with(&database, &["--heartbeat=1s"]).await;
    let mut open = bridge.connect_live("alice").await;
    let mut account = Account::without_repeats(
        "Postgres crashes, transaction ids that left no trace are used again",
    );
    for round in 0..ROUNDS {
        let how = [Crash::Backend, Crash::Server][round % 2];
        let mut leaving = bridge.connect_live("alice").await;
        let writer = connect_again(&database).await;
        for _ in 0..FORGOTTEN {
            writer
                .batch_execute("begin; select pg_current_xact_id(); rollback")
                .await
                .expect("a transaction id");
        }
        // If anything moves the bridge's position past these ids, a row of bob's does.
        database
            .execute("select send_notification('bob', 'hello')")
            .await;
        while !matches!(leaving.next_item().await, Ok(item) if is_id(&item)) {}
        let id = leaving.last_event_id().to_owned();
        drop(leaving);
        // Bob's row is on disk; these transaction ids are not.
        for _ in 0..FORGOTTEN {
            writer
                .batch_execute("begin; select pg_current_xact_id(); rollback")
                .await
                .expect("a transaction id");
        }
        while !matches!(open.next_item().await, Ok(item) if is_id(&item)) {}
        let crashed_at = crash(&mut cluster, &database, how).await;
        let writer = connect_again(&database).await;
        let owed = format!("hello {round}");
        insert(&writer, &owed).await;
        assert_eq!(open.next_event().await.data, owed);
        account.recovered_after(crashed_at.elapsed());
        let mut returning = bridge.resume("alice", &id).await;
        assert_eq!(texts_until(&mut returning, &owed).await, [owed.as_str()]);
        account.client([round as i64], &[round as i64]);
    }
    account.close();
    cluster.stop().await.expect("an end");
}

/// Waits for the end of the stream under a deadline of its own: heartbeats keep resetting the
/// stream's.
async fn ends(source: &mut EventSource) {
    let rest = tokio::time::timeout(PATIENCE, source.rest()).await;
    assert_eq!(rest.expect("an end in time").1, End::Clean);
}

/// A logout has the same transaction id as an earlier one that the bridge read before the crash and
/// that the crash lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_logout_after_a_crash_ends_streams_although_its_transaction_id_was_read_before() {
    let mut cluster = start_forgetful_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    // As above: Postgres may have flushed its WAL on its own.
    let mut forgotten = 0;
    for round in 0.. {
        if forgotten == ROUNDS {
            break;
        }
        assert!(round < 10 * ROUNDS, "no crash forgets anything");
        // Each round has its own users, since logouts of earlier rounds may be read again.
        let [carol, bob, alice] = ["carol", "bob", "alice"].map(|name| format!("{name} {round}"));
        let mut alices = bridge.connect_live(&alice).await;
        let mut bobs = bridge.connect_live(&bob).await;
        let hurried = connect_again(&database).await;
        let off = "set synchronous_commit = off";
        hurried.batch_execute(off).await.expect("a setting");
        let log_out = async |client: &Client, user: &str| {
            let log_out = format!("select disconnect_user('{user}')");
            client.batch_execute(&log_out).await.expect("a logout");
        };
        for _ in 0..FORGOTTEN {
            log_out(&hurried, &carol).await;
        }
        log_out(&hurried, &bob).await;
        ends(&mut bobs).await;
        let how = [Crash::Backend, Crash::Server][round % 2];
        crash(&mut cluster, &database, how).await;
        let writer = connect_again(&database).await;
        let left = format!("select count(*) from tidings_disconnections where user_id = '{carol}'");
        if database.ids(&left).await[0] <= 2 {
            forgotten += 1;
        }
        log_out(&writer, &alice).await;
        ends(&mut alices).await;
    }
    bridge.stop().await;
    cluster.stop().await.expect("an end");
}

fn is_id(item: &Item) -> bool {
    matches!(item, Item::Id(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_survive_a_crash_do_not_come_twice_to_an_open_connection() {
    let mut cluster = start_forgetful_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut open = bridge.connect_live("alice").await;
    let mut account = Account::without_repeats("Postgres crashes, what was sent is partly on disk");
    let (mut owed, mut got) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let writer = connect_again(&database).await;
        let hurried = connect_again(&database).await;
        hurried
            .batch_execute("set synchronous_commit = off")
            .await
            .expect("a setting");
        // Each page is read while some of its transactions are not yet on disk, so the bridge can't
        // treat it as durable; the next row flushes them.
        for n in 0..5 {
            let text = format!("row {round} {n}");
            insert(&writer, &text).await;
            hurried
                .execute(
                    "insert into notifications (user_id, text) values ('bob', 'x')",
                    &[],
                )
                .await
                .expect("a row of bob's");
            owed.push(text.clone());
            got.extend(texts_until(&mut open, &text).await);
        }
        let how = [Crash::Backend, Crash::Server][round % 2];
        let crashed_at = crash(&mut cluster, &database, how).await;
        let writer = connect_again(&database).await;
        let after = format!("after {round}");
        insert(&writer, &after).await;
        got.extend(texts_until(&mut open, &after).await);
        owed.push(after);
        account.recovered_after(crashed_at.elapsed());
    }
    assert_eq!(got, owed);
    account.client(
        0..owed.len() as i64,
        &(0..got.len() as i64).collect::<Vec<_>>(),
    );
    account.close();
    cluster.stop().await.expect("an end");
}
