//! Guessed or valid tickets, while the database is frozen or busy: each request is
//! answered in time, and other clients aren't affected.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::bystander::{Bystander, time_to_first_row};
use crate::support::{
    PATIENCE,
    bridge::Bridge,
    database::{Database, start_cluster},
    event_source::get,
    frozen::Frozen,
};

/// Whatever the database does, a request is answered within this time.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// Requests that can't wait are answered at once; a thousand concurrent ones take a
/// while.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A flood that isn't rate-limited uses some of a small machine's processors.
const MEDIAN_TOLERANCE: Duration = Duration::from_millis(50);

/// Requests of one address that may wait for a lookup.
const WAITING: usize = 128;

/// Has the form of a ticket.
fn guess(number: usize) -> String {
    format!("{number:064x}")
}

/// The response status for the ticket, and how long that took.
async fn ask(bridge: &Bridge, ticket: &str) -> (u16, Duration) {
    let began = Instant::now();
    let path = format!("/stream?ticket={ticket}");
    let answer = timeout(PATIENCE, get(bridge.address(), &path, &[])).await;
    let status = answer.expect("in time").expect("an answer").status();
    (status, began.elapsed())
}

async fn ticket(database: &Database, user: &str) -> String {
    let client = database.connect().await;
    let make = "select create_stream_ticket($1)";
    client.query_one(make, &[&user]).await.expect(make).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_frozen_each_is_answered_in_time_and_those_beyond_the_queue_at_once()
{
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let good = ticket(&database, "alice").await;
    assert_eq!(ask(&bridge, &good).await.0, 200);
    let frozen = Frozen::freeze(&cluster).await;
    for clients in [40, 1_000] {
        let answers = join_all((0..clients).map(|number| {
            let (bridge, good) = (&bridge, &good);
            // Half of them are valid.
            async move {
                match number % 2 {
                    0 => ask(bridge, good).await,
                    _ => ask(bridge, &guess(number)).await,
                }
            }
        }))
        .await;
        assert!(answers.iter().all(|(status, _)| *status == 503));
        let mut times: Vec<_> = answers.into_iter().map(|(_, took)| took).collect();
        times.sort_unstable();
        let slowest = times[clients - 1];
        assert!(slowest < ANSWERED_WITHIN, "{clients}: {slowest:?}");
        if clients > WAITING {
            let beyond = times[clients - WAITING - 1];
            assert!(beyond < AT_ONCE, "{beyond:?}");
        }
    }
    assert!(bridge.refused("unavailable").await >= 1_040);
    drop(frozen);
    let thawed = Instant::now();
    while ask(&bridge, &good).await.0 != 200 {
        assert!(thawed.elapsed() < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_gives_its_place_in_the_queue_back() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let good = ticket(&database, "alice").await;
    let frozen = Frozen::freeze(&cluster).await;
    let mut waiting: Vec<_> = (0..=WAITING)
        .map(|number| {
            let (address, path) = (
                bridge.address(),
                format!("/stream?ticket={}", guess(number)),
            );
            tokio::spawn(async move { get(address, &path, &[]).await.map(drop) })
        })
        .collect();
    // One of them finds the queue full, and so do new requests.
    bridge.until_refused("unavailable").await;
    let (status, took) = ask(&bridge, &good).await;
    assert_eq!(status, 503);
    assert!(took < AT_ONCE, "{took:?}");
    for one in waiting.drain(..) {
        one.abort();
        let _ = one.await;
    }
    // Until the bridge notices that they have disconnected, others are still rejected.
    let left = Instant::now();
    let mut next = loop {
        let mut asking = Box::pin(ask(&bridge, &good));
        if timeout(Duration::from_millis(500), &mut asking)
            .await
            .is_err()
        {
            break asking;
        }
        assert!(left.elapsed() < ANSWERED_WITHIN, "the queue stays full");
    };
    drop(frozen);
    assert_eq!((&mut next).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_guesses_delays_nobody_who_is_there_or_comes() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let stream = bridge.connect_live("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let undisturbed = bystander.receive(100).await;
    let address = bridge.address();
    let flood: Vec<_> = (0..64)
        .map(|client| {
            tokio::spawn(async move {
                for number in 0.. {
                    let path = format!("/stream?ticket={}", guess(client << 32 | number));
                    let answer = get(address, &path, &[]).await.expect("an answer");
                    assert!([401, 503].contains(&answer.status()));
                }
            })
        })
        .collect();
    let during = bystander.receive(100).await;
    let first = time_to_first_row(address, &database, "newcomer").await;
    assert!(first < Duration::from_secs(1), "{first:?}");
    for one in flood {
        assert!(!one.is_finished(), "it is attacked until the end");
        one.abort();
    }
    during.assert_close_to(&undisturbed);
    let (during, before) = (during.p50(), undisturbed.p50());
    assert!(
        during < before + MEDIAN_TOLERANCE,
        "the median was {before:?} and is {during:?}"
    );
}
