//! The real binary: it stops in order, in time, and with a good exit code.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;

use crate::support::{
    PATIENCE,
    bridge::token,
    database::Database,
    event_source::{End, EventSource, Item},
    process::{serve, signal},
    until,
};

const STREAMS: usize = 1_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_end_spread_out_within_seconds_and_every_mark_is_kept() {
    // The clients' ends of the streams are files of this process.
    rlimit::increase_nofile_limit(8 * STREAMS as u64).expect("more open files");
    let database = Database::migrated().await;
    let (mut child, address) = serve(&database, &["--drain=2s"]).await;
    let open = async |n: usize| {
        let bearer = format!("Bearer {}", token(&format!("user{n}")));
        let mut source = EventSource::open(address, "/stream", &[("Authorization", &bearer)]).await;
        until(&mut source, "tidings.caught-up").await;
        source
    };
    let mut sources = Vec::new();
    for hundred in 0..STREAMS / 100 {
        sources.extend(join_all((0..100).map(|n| open(hundred * 100 + n))).await);
    }
    database
        .execute(&format!(
            "insert into notifications (user_id, text) \
             select 'user' || n, 'last words' from generate_series(0, {STREAMS} - 1) n"
        ))
        .await;
    for source in &mut sources {
        assert_eq!(source.next_event().await.data, "last words");
    }
    let asked = Instant::now();
    signal(&child, Signal::SIGTERM);
    let ends = join_all(sources.into_iter().map(async |mut source| {
        let (items, end) = source.rest().await;
        let Some(Item::Retry(retry)) = items.last() else {
            panic!("not a retry: {items:?}")
        };
        assert_eq!(end, End::Clean);
        (asked.elapsed(), *retry)
    }))
    .await;
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("an end")
        .expect("a status");
    let took = asked.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    // Spread over the drain time and over the time of the return.
    let (first, last) = (
        ends.iter().min().expect("ends"),
        ends.iter().max().expect("ends"),
    );
    assert!(
        last.0 - first.0 > Duration::from_secs(1),
        "{first:?} to {last:?}"
    );
    let mut retries: Vec<u64> = ends.iter().map(|end| end.1).collect();
    retries.sort_unstable();
    retries.dedup();
    assert!(
        retries.len() > STREAMS / 4,
        "{} different waits",
        retries.len()
    );
    assert_eq!(
        database
            .ids("select id from notifications where not sent")
            .await,
        [0; 0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_stops_it_too() {
    let database = Database::migrated().await;
    let (mut child, _) = serve(&database, &[]).await;
    signal(&child, Signal::SIGINT);
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("an end")
        .expect("a status");
    assert!(status.success(), "{status}");
}
