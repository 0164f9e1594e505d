//! Bridges that stop, are killed, freeze or lose their sessions, asleep and awake, while other
//! bridges rely on them.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::{process::Child, time::sleep};
use tokio_postgres::Client;

use super::{BELL_ALONE, bell::Bell};
use crate::support::{
    PATIENCE,
    bridge::{Bridge, token},
    database::Database,
    event_source::EventSource,
    no_repeats,
    process::{serve, signal},
    rows, until,
};

/// No INSERT may take longer than this, whatever a bridge does. It takes about a millisecond; the
/// rest is a margin for a busy machine.
const PATIENT: &str = "set statement_timeout = '5s'; set lock_timeout = '1s'";

/// How many rows to insert one by one while something happens.
const ROWS: usize = 20;

async fn impatient(database: &Database) -> Client {
    let client = database.connect().await;
    client.batch_execute(PATIENT).await.expect("settings");
    client
}

async fn insert(client: &Client) -> i64 {
    let insert = "insert into notifications (user_id, text) values ('alice', 'row') returning id";
    let inserted = client.query_one(insert, &[]).await;
    inserted.expect("a row that waits for nobody").get(0)
}

/// Inserts rows before, during and after something that happens.
async fn around(client: &Client, happens: impl Future<Output = ()>) -> Vec<i64> {
    let mut ids = vec![insert(client).await];
    let during = async {
        let mut ids = Vec::new();
        for _ in 0..ROWS {
            sleep(Duration::from_micros(rand::random_range(0..5_000))).await;
            ids.push(insert(client).await);
        }
        ids
    };
    ids.extend(tokio::join!(during, happens).0);
    ids.push(insert(client).await);
    ids
}

/// A bridge in its own process, and a client of it.
async fn process(database: &Database, settings: &[&str]) -> (Child, EventSource) {
    let (child, address) = serve(database, settings).await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("Authorization", bearer.as_str())];
    let mut source = EventSource::open(address, "/stream", &headers).await;
    until(&mut source, "tidings.caught-up").await;
    (child, source)
}

async fn gets(source: &mut EventSource, owed: &[i64]) {
    let got = rows(source, owed.len()).await;
    assert_eq!(no_repeats(&got), no_repeats(owed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_stops_in_order_is_missed_by_nobody() {
    let database = Database::migrated().await;
    let (bell, writer) = (Bell::of(&database).await, impatient(&database).await);
    let mut sleeper = Bridge::start_with(&database, &[BELL_ALONE]).await;
    for round in 0..12 {
        let since = bell.until_rung().await;
        let follower = Bridge::start_with(&database, &[BELL_ALONE]).await;
        let mut source = follower.connect_live("alice").await;
        let owed = match round % 2 {
            // Only the stopping bridge sends NOTIFY for this row.
            0 => {
                bell.until_all_sleep().await;
                sleeper.stop().await;
                vec![insert(&writer).await]
            }
            _ => around(&writer, sleeper.stop()).await,
        };
        gets(&mut source, &owed).await;
        bell.until_rung_anew(since).await;
        sleeper = follower;
    }
    // If a bridge stops while another one is asleep, no row is missed either.
    let follower = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = sleeper.connect_live("alice").await;
    bell.until_all_sleep().await;
    let owed = around(&writer, follower.stop()).await;
    gets(&mut source, &owed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_killed_asleep_is_followed_by_another() {
    let database = Database::migrated().await;
    let (bell, writer) = (Bell::of(&database).await, impatient(&database).await);
    let (mut sleeper, _) = process(&database, &[BELL_ALONE]).await;
    for _ in 0..3 {
        bell.until_rung().await;
        let (follower, mut source) = process(&database, &[BELL_ALONE]).await;
        bell.until_all_sleep().await;
        let killed = async { signal(&sleeper, Signal::SIGKILL) };
        let owed = around(&writer, killed).await;
        gets(&mut source, &owed).await;
        let owed = [insert(&writer).await];
        gets(&mut source, &owed).await;
        sleeper = follower;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_frozen_asleep_or_awake_holds_up_nobody() {
    let database = Database::migrated().await;
    let (bell, writer) = (Bell::of(&database).await, impatient(&database).await);
    for is_awake in [false, true] {
        if is_awake {
            bell.keeps_awake().await;
        }
        let (frozen, mut at_frozen) = process(&database, &[BELL_ALONE]).await;
        if !is_awake {
            bell.until_rung().await;
        }
        let (other, mut at_other) = process(&database, &[BELL_ALONE]).await;
        if !is_awake {
            bell.until_all_sleep().await;
        }
        let freezes = async { signal(&frozen, Signal::SIGSTOP) };
        let mut owed = around(&writer, freezes).await;
        gets(&mut at_other, &owed).await;
        if is_awake {
            // The other bridge may fall asleep while this one is frozen awake.
            bell.lets_sleep().await;
            bell.until_rung().await;
        }
        let thaws = async { signal(&frozen, Signal::SIGCONT) };
        let more = around(&writer, thaws).await;
        gets(&mut at_other, &more).await;
        owed.extend(more);
        gets(&mut at_frozen, &owed).await;
        // Whether they are asleep or awake now, both receive the next row.
        bell.until_all_sleep().await;
        let owed = [insert(&writer).await];
        gets(&mut at_frozen, &owed).await;
        gets(&mut at_other, &owed).await;
        // Dropping them kills them.
        drop((frozen, other));
        bell.until(
            "select not exists (select from pg_stat_activity where application_name = 'tidings' \
             and datname = current_database())",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_asleep_or_awake_costs_no_row() {
    let database = Database::migrated().await;
    let (bell, writer) = (Bell::of(&database).await, impatient(&database).await);
    let bridge = Bridge::start_with(&database, &[BELL_ALONE]).await;
    let mut source = bridge.connect_live("alice").await;
    for _ in 0..4 {
        let owed = around(&writer, bell.end_session()).await;
        gets(&mut source, &owed).await;
        bell.until_all_sleep().await;
        let owed = [insert(&writer).await];
        gets(&mut source, &owed).await;

        bell.keeps_awake().await;
        let owed = around(&writer, bell.end_session()).await;
        gets(&mut source, &owed).await;
        bell.lets_sleep().await;
        bell.until_all_sleep().await;
        let owed = [insert(&writer).await];
        gets(&mut source, &owed).await;
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bridges_of_which_one_loses_its_session_miss_no_row() {
    let database = Database::migrated().await;
    let (bell, writer) = (Bell::of(&database).await, impatient(&database).await);
    let bridges = [
        Bridge::start_with(&database, &[BELL_ALONE]).await,
        Bridge::start_with(&database, &[BELL_ALONE]).await,
        Bridge::start_with(&database, &[BELL_ALONE]).await,
    ];
    let mut sources = Vec::new();
    for bridge in &bridges {
        sources.push(bridge.connect_live("alice").await);
    }
    for _ in 0..4 {
        bell.until_all_sleep().await;
        let owed = around(&writer, bell.end_session()).await;
        for source in &mut sources {
            gets(source, &owed).await;
        }
    }
}

/// Reported as connected, besides the one that is.
const OTHERS: u32 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn the_more_bridges_there_are_the_more_rarely_each_of_them_polls() {
    let database = Database::migrated().await;
    let reporter = database.bridge().connect().await;
    let report = format!(
        "select tidings_report(bridge => 'other ' || n, version => 'x', role => null, address => 'x', \
         client_address => null, started_at => now(), pid => pg_backend_pid(), \
         backend_start => (select backend_start from pg_stat_activity where pid = pg_backend_pid()), \
         state => 'awake', since => now(), connections => 0, clock_offset => null, minute => null, \
         seen => 0, sent => 0, delays => '{{}}'), tidings_report_topics('other ' || n) \
         from generate_series(1, {OTHERS}) n"
    );
    reporter.batch_execute(&report).await.expect("reports");
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let writer = impatient(&database).await;
    let begin = Instant::now();
    for _ in 0..ROWS {
        let row = insert(&writer).await;
        assert_eq!(rows(&mut source, 1).await, [row]);
    }
    // One millisecond for each bridge. A row waits for a poll, and the next one for the next. The
    // first poll may have begun before the first row was written.
    let took = begin.elapsed();
    let gap = Duration::from_millis((OTHERS + 1).into());
    assert!(took >= gap * (ROWS as u32 - 2), "{took:?}");
    assert!(took < PATIENCE, "{took:?}");
}
