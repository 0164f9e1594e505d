//! The real binary: it stops in order, in time, and with a good exit code.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::support::{
    PATIENCE,
    bridge::{SECRET, token},
    database::Database,
    event_source::{End, EventSource, Item},
    until,
};

const STREAMS: usize = 1_000;

/// A bridge of its own process, and where it listens.
async fn serve(database: &Database, more: &[&str]) -> (Child, std::net::SocketAddr) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args([
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--log-format=json",
        ])
        .args(more)
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let address = loop {
        let line = lines
            .next_line()
            .await
            .expect("its log")
            .expect("it says where it listens");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        if let Some(address) = line["address"].as_str() {
            break address.parse().expect("an address");
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, address)
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let id = child
        .id()
        .expect("a running process")
        .try_into()
        .expect("a process id");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).expect("a signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_end_spread_out_within_seconds_and_every_mark_is_kept() {
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
    signal(&child, nix::sys::signal::Signal::SIGTERM);
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
    signal(&child, nix::sys::signal::Signal::SIGINT);
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("an end")
        .expect("a status");
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_starting_is_told_with_what_to_do() {
    let database = Database::migrated().await;
    let tidings = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command
            .args(arguments)
            .env_remove("DATABASE_URL")
            .env_remove("TIDINGS_JWT_SECRET");
        command
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!("--listen={}", taken.local_addr().expect("an address"));
    let url = database.connection_string();
    let cases: [(&[&str], &str); 8] = [
        (&["serve"], "TIDINGS_JWT_SECRET"),
        (&["serve", "--jwt-secret=short"], "openssl rand -hex 32"),
        (&["serve", "--jwt-secret", SECRET], "set DATABASE_URL"),
        (
            &["serve", "--jwt-secret", SECRET, "--database-url=nonsense"],
            "postgres://user:password@host",
        ),
        (
            &[
                "serve",
                "--jwt-secret",
                SECRET,
                "--database-url",
                url,
                &taken,
            ],
            "TIDINGS_LISTEN",
        ),
        (&["serve", "--pool-size=1"], "2..=1000"),
        (&["token", "alice"], "TIDINGS_JWT_SECRET"),
        (&["dev", "--listen=0.0.0.0:8080"], "127.0.0.1:8080"),
    ];
    for (arguments, expected) in cases {
        let output = tidings(arguments).output().await.expect("the binary");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(!said.contains(SECRET), "{arguments:?}: {said}");
    }
}
