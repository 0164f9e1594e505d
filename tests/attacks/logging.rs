//! The process that reads the log hangs, and the pipe is full: delivery must not wait
//! for it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr},
    time::timeout,
};

use crate::bystander::Bystander;
use crate::support::{
    PATIENCE,
    bridge::token,
    database::Database,
    event_source::{EventSource, get},
    process::{signal, spawn},
    until,
};

/// Enough rows that a few delayed by a busy machine don't determine the 99th
/// percentile.
const ROWS: usize = 400;

/// The drain time is zero, so this is the limit in docs/operations/running.md plus a
/// margin for a busy machine.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(12);

/// How soon the number of dropped lines must be logged once the log is read again; this
/// happens every ten seconds.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// A bridge whose log is read only when the test reads it.
struct Unread {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    address: SocketAddr,
    admin_address: SocketAddr,
}

impl Unread {
    async fn start(database: &Database, format: &str) -> Self {
        let format = format!("--log-format={format}");
        let mut child = spawn(database, &["--log=trace", "--drain=0s", &format], &[]);
        let mut log = BufReader::new(child.stderr.take().expect("its log")).lines();
        let reading = async {
            loop {
                let line = log.next_line().await.expect("text").expect("a line");
                if let Some(addresses) = addresses(&line) {
                    return addresses;
                }
            }
        };
        let (address, admin_address) = timeout(PATIENCE, reading).await.expect("it starts");
        Self {
            child,
            log,
            address,
            admin_address,
        }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = timeout(PATIENCE, get(self.admin_address, path, &[])).await;
        let answer = answer.expect("an answer in time").expect("an answer");
        (answer.status(), answer.text().await)
    }

    async fn dropped(&self) -> u64 {
        let (_, metrics) = self.get("/metrics").await;
        let name = "tidings_log_lines_dropped_total ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(name));
        count.expect(name).parse().expect("a number")
    }

    /// Reads until a line contains this text.
    async fn until_logged(&mut self, text: &str) {
        let reading = async {
            loop {
                let line = self.log.next_line().await.expect("text").expect("a line");
                if line.contains(text) {
                    return;
                }
            }
        };
        let outcome = timeout(TOLD_WITHIN, reading).await;
        outcome.unwrap_or_else(|_| panic!("never in the log: {text}"));
    }
}

/// Parses the line that contains the addresses, in both log formats.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    if let Ok(line) = serde_json::from_str::<Value>(line) {
        let named = |name: &str| line[name].as_str()?.parse().ok();
        return Some((named("address")?, named("admin_address")?));
    }
    let named = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some((named(" address=")?, named("admin_address=")?))
}

/// The bridge logs all the time, and the log isn't read.
async fn a_full_pipe_stops_nothing(format: &str) {
    let database = Database::migrated().await;
    let mut bridge = Unread::start(&database, format).await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("Authorization", bearer.as_str())];
    let mut stream = EventSource::open(bridge.address, "/stream", &headers).await;
    until(&mut stream, "tidings.caught-up").await;
    let mut bystander = Bystander::watch(&database, "alice", stream).await;
    let undisturbed = tokio::select! {
        delays = bystander.receive(ROWS) => delays,
        () = async { while let Ok(Some(_)) = bridge.log.next_line().await {} } => {
            panic!("it ended")
        }
    };

    let filling = async {
        while bridge.dropped().await == 0 {
            bystander.receive_one().await;
        }
    };
    timeout(PATIENCE, filling).await.expect("the pipe is full");
    let disturbed = bystander.receive(ROWS).await;
    disturbed.assert_close_to(&undisturbed);
    for path in ["/health/live", "/health/ready"] {
        let (status, text) = bridge.get(path).await;
        assert_eq!(status, 200, "{path}: {text}");
    }

    // Once the log is read again, it reports the dropped lines.
    bridge.until_logged("log lines were dropped").await;

    let before = bridge.dropped().await;
    let filling = async {
        while bridge.dropped().await == before {
            bystander.receive_one().await;
        }
    };
    timeout(PATIENCE, filling).await.expect("it is full again");
    let asked = Instant::now();
    signal(&bridge.child, Signal::SIGTERM);
    let ended = timeout(PATIENCE, bridge.child.wait()).await;
    let status = ended.expect("an end").expect("a status");
    assert!(status.success(), "{status}");
    let took = asked.elapsed();
    assert!(took < SHUTDOWN_LIMIT, "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_delays_no_row_and_keeps_it_from_nothing() {
    a_full_pipe_stops_nothing("json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_one_for_people() {
    a_full_pipe_stops_nothing("text").await;
}
