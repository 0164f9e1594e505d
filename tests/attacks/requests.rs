//! Too many requests on one HTTP/2 connection, and requests that are too large.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, StatusCode};
use tokio::{runtime::Handle, task::spawn_blocking, time::timeout};

use super::frames::{
    Answers, Frames, GOAWAY, HEADERS, RST_STREAM, connect_without_room, request, reset,
};
use crate::bystander::{Bystander, time_to_first_row};
use crate::support::{
    PATIENCE,
    database::Database,
    process::Served,
    tls::{
        authority::Authority,
        http2::Http2,
        tunnel::{ORIGIN, Tunnel},
    },
};

/// As many as fit into 1.2 MB of frames.
const REQUESTS: u32 = 100_000;

/// How many frames the attacker sends at a time.
const AT_ONCE: u32 = 100;

/// A bridge's memory may grow by this much under attack.
const GROWTH: usize = 50 << 20;

/// The number of concurrent streams of a connection
/// ([`tidings::http::http2::STREAMS`]).
const STREAMS: usize = tidings::http::http2::STREAMS as usize;

/// Rows of a measurement: enough that a single stall of the machine is no percentile.
const ROWS: usize = 300;

struct Scene {
    database: Database,
    authority: Arc<Authority>,
    bridge: Served,
    elsewhere: Tunnel,
    bystander: Bystander,
}

impl Scene {
    async fn set() -> Self {
        let database = Database::migrated().await;
        let authority = Arc::new(Authority::new());
        let [certificate, key] = authority.issue("bridge", &[ORIGIN]).settings();
        let bridge = Served::start(&database, &[&certificate, &key]).await;
        let elsewhere = Tunnel::to(bridge.address(), Arc::clone(&authority)).await;
        let stream = elsewhere.stream("bystander").await;
        let bystander = Bystander::watch(&database, "bystander", stream).await;
        Self {
            database,
            authority,
            bridge,
            elsewhere,
            bystander,
        }
    }

    async fn attack(&self) -> (Frames, Answers) {
        connect_without_room(self.bridge.address(), &self.authority).await
    }

    /// Checks that other clients receive their rows as fast as before while `attack`
    /// runs, on a thread of its own so that it doesn't delay the test's own clients.
    async fn unmoved_by<A>(&mut self, attack: A)
    where
        A: Future<Output = ()> + Send + 'static,
    {
        let undisturbed = self.bystander.receive(ROWS).await;
        let here = Handle::current();
        let attack = spawn_blocking(move || here.block_on(attack));
        let others = async {
            let during = self.bystander.receive(ROWS).await;
            let took = time_to_first_row(self.elsewhere.address, &self.database, "alice").await;
            assert!(took <= Duration::from_secs(1), "{took:?}");
            during
        };
        let (attack, during) = tokio::join!(attack, others);
        attack.expect("no panic");
        // Other tests load the machine at unpredictable times.
        let afterwards = self.bystander.receive(ROWS).await;
        let slower = undisturbed.p99() < afterwards.p99();
        during.assert_close_to(if slower { &afterwards } else { &undisturbed });
    }
}

/// Sends requests for a missing page until all are sent, the connection ends, or it
/// accepts no data for `patience`.
async fn flood(mut frames: Frames, patience: Duration) {
    for first in (0..REQUESTS).step_by(AT_ONCE as usize) {
        let numbers = first..first + AT_ONCE;
        let bytes: Vec<u8> = numbers
            .flat_map(|number| request(number, super::frames::NOWHERE))
            .collect();
        match timeout(patience, frames.send(&bytes)).await {
            Ok(Ok(())) => {}
            // An abandoned write would prevent closing.
            Ok(Err(_)) | Err(_) => return,
        }
    }
    frames.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_requests_without_room_for_answers_take_little_memory() {
    let mut scene = Scene::set().await;
    let (frames, answers) = scene.attack().await;
    let counting = tokio::spawn(answers.count());
    let before = scene.bridge.vitals().resident_bytes;
    scene.unmoved_by(flood(frames, PATIENCE)).await;
    let counts = timeout(PATIENCE, counting)
        .await
        .expect("an end")
        .expect("no panic");
    let grown = scene.bridge.vitals().peak_bytes.saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes; {counts:?}");
    // Responses began for those within the limit; the others were rejected.
    let answered = counts.get(&HEADERS).copied().unwrap_or_default();
    assert!((STREAMS..=4 * STREAMS).contains(&answered), "{counts:?}");
    assert!(counts.get(&RST_STREAM) >= Some(&90_000), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_requests_of_a_client_that_reads_nothing_take_little_memory() {
    let mut scene = Scene::set().await;
    let (frames, _answers) = scene.attack().await;
    let before = scene.bridge.vitals().resident_bytes;
    // It stops when the bridge accepts no more.
    scene
        .unmoved_by(flood(frames, Duration::from_secs(5)))
        .await;
    let grown = scene.bridge.vitals().peak_bytes.saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    let mut scene = Scene::set().await;
    let (mut frames, answers) = scene.attack().await;
    let counting = tokio::spawn(answers.count());
    let before = scene.bridge.vitals().resident_bytes;
    let start = Instant::now();
    let attack = async move {
        for first in (0..REQUESTS).step_by(AT_ONCE as usize) {
            let bytes: Vec<u8> = (first..first + AT_ONCE)
                .flat_map(|number| {
                    [request(number, super::frames::NOWHERE), reset(number)].concat()
                })
                .collect();
            if timeout(PATIENCE, frames.send(&bytes))
                .await
                .expect("a bridge that reads")
                .is_err()
            {
                return;
            }
        }
    };
    scene.unmoved_by(attack).await;
    let counts = timeout(PATIENCE, counting)
        .await
        .expect("an end")
        .expect("no panic");
    assert_eq!(counts.get(&GOAWAY), Some(&1), "{counts:?}");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
    let grown = scene.bridge.vitals().peak_bytes.saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let scene = Scene::set().await;
    let connection = Http2::connect(scene.bridge.address(), &scene.authority).await;
    let mut stream = connection.open("alice").await;
    let other = Http2::connect(scene.bridge.address(), &scene.authority).await;
    for (connection, bytes) in [
        (&connection, tidings::http::http2::HEADER_BYTES as usize),
        // Many times more than that ends the connection.
        (&other, 1 << 20),
    ] {
        let request = Request::get("https://localhost/stream").header("x-other", "x".repeat(bytes));
        if let (Ok(answer), _request) = connection.ask(request).await {
            assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
    }
    // A size that no browser exceeds is accepted.
    let request = Request::get("https://localhost/nowhere").header("x-other", "x".repeat(30_000));
    let (answer, _request) = connection.ask(request).await;
    assert_eq!(answer.expect("an answer").status(), StatusCode::NOT_FOUND);
    scene
        .database
        .execute("select send_notification('alice', 'unharmed')")
        .await;
    stream.until("data: unharmed\nid: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_a_connection_may_have_are_refused_and_the_others_go_on() {
    let scene = Scene::set().await;
    let connection = Http2::connect(scene.bridge.address(), &scene.authority).await;
    let mut streams = Vec::with_capacity(STREAMS);
    for number in 0..STREAMS {
        streams.push(connection.open(&format!("user{}", number % 4)).await);
    }
    // The client knows the limit, and waits.
    let mut another = pin!(connection.open("user0"));
    let waiting = timeout(Duration::from_secs(1), &mut another).await;
    assert!(waiting.is_err(), "one too many");
    scene
        .database
        .execute("select send_notification('user1', 'still here')")
        .await;
    streams[1].until("data: still here\nid: ").await;
    // Ending one makes room.
    streams.swap_remove(0).reset();
    let another = timeout(Duration::from_secs(5), another).await;
    another.expect("a place").until("tidings.caught-up").await;
}
