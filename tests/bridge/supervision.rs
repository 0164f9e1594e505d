//! A background task that ends unexpectedly stops the bridge, gracefully and visibly.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tidings::app::{App, Parts, RunError};
use tokio::{
    sync::Notify,
    time::{interval, timeout},
};

use crate::support::{
    PATIENCE,
    bridge::{serve_options, token},
    database::Database,
    event_source::{End, EventSource, get},
    until,
};

/// The time that a bridge may take to notice it and stop, in addition to its drain time.
const LIMIT: Duration = Duration::from_secs(5);

/// Enough streams, spread over the drain time, that some are still open while readiness is checked.
const STREAMS: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_turns_readiness_red_and_stops_the_bridge_with_its_name() {
    let database = Database::migrated().await;
    let drain = Duration::from_secs(3);
    let mut options = serve_options(&database, &[]);
    options.bridge.drain = drain;
    let parts = Parts::of(&options).expect("settings");
    let mut app = App::build(parts, &options.bridge).await.expect("a bridge");
    let (address, admin) = (app.address(), app.admin_address());
    let blow = Arc::new(Notify::new());
    let fuse = Arc::clone(&blow);
    app.supervise("task of a test", async move {
        fuse.notified().await;
        panic!("of a test");
    });
    let running = tokio::spawn(app.run_until(std::future::pending()));

    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("Authorization", bearer.as_str())];
    let opening = (0..STREAMS).map(|_| EventSource::open(address, "/stream", &headers));
    let mut streams = join_all(opening).await;
    for stream in &mut streams {
        until(stream, "tidings.caught-up").await;
    }
    let ready = async || get(admin, "/health/ready", &[]).await.expect("an answer");
    assert_eq!(ready().await.status(), 200);

    let blown = Instant::now();
    blow.notify_one();
    let asking = async {
        let mut pace = interval(Duration::from_millis(10));
        loop {
            pace.tick().await;
            let answer = ready().await;
            if answer.status() == 503 {
                return answer.text().await;
            }
        }
    };
    let reason = timeout(PATIENCE, asking).await.expect("it turns red");
    assert!(blown.elapsed() < LIMIT, "{:?}", blown.elapsed());
    assert!(reason.contains("task of a test"), "{reason}");

    // It still shuts down gracefully.
    let ends = join_all(streams.iter_mut().map(EventSource::rest)).await;
    assert!(ends.iter().all(|(_, end)| *end == End::Clean));
    let ended = timeout(PATIENCE, running).await.expect("an end");
    let took = blown.elapsed();
    assert!(took < drain + LIMIT, "it took {took:?}");
    match ended.expect("no panic") {
        Err(RunError::Ended("task of a test")) => {}
        other => panic!("{other:?}"),
    }
}
