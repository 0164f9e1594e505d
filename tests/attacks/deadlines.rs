//! Clients that send one byte per second and never finish.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::TcpStream,
    task::JoinSet,
    time::{interval, timeout},
};

use super::frames::{connect_without_room, endless_request};
use crate::bystander::{Bystander, time_to_first_row};
use crate::support::{
    bridge::Bridge,
    database::Database,
    tls::{
        authority::Authority,
        start,
        tunnel::{Tunnel, connect},
    },
};

/// The longest deadline of a request, which is 40 s, plus a margin for a busy machine.
const CUT_OFF: Duration = Duration::from_secs(45);

/// The first bytes are sent at once, the last field is then sent once per second
/// forever.
const REQUESTS: [(&str, &str, u8); 7] = [
    (
        "a head",
        "GET /stream HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b'x',
    ),
    ("a request line", "GET /", b'x'),
    (
        "a second request",
        "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\nGET /stream HTTP/1.1\r\nX-Slow: ",
        b'x',
    ),
    (
        "garbage after a request",
        "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n\0\0\0",
        0,
    ),
    (
        "a body",
        "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        b'x',
    ),
    (
        "a body in chunks",
        "POST /stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
        b'x',
    ),
    (
        "a body that is waited for",
        "POST /health/live HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999\r\n\r\n",
        b'x',
    ),
];

/// Sends `first`, then `next` once per second, and returns how long it took until the
/// other side closed the connection.
async fn send_slowly(socket: impl AsyncRead + AsyncWrite, first: &[u8], next: &[u8]) -> Duration {
    let start = Instant::now();
    let (mut reading, mut writing) = split(socket);
    let sending = async {
        writing.write_all(first).await?;
        let mut second = interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            writing.write_all(next).await?;
            writing.flush().await?;
        }
    };
    let mut answer = Vec::new();
    let closed = async {
        let outcome: std::io::Result<()> = tokio::select! {
            outcome = sending => outcome,
            _ = reading.read_to_end(&mut answer) => Ok(()),
        };
        // Closed cleanly or with an RST.
        drop(outcome);
    };
    let _ = timeout(CUT_OFF, closed).await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_byte_a_second_is_cut_off_whatever_it_is_part_of() {
    let database = Database::migrated().await;
    let authority = Arc::new(Authority::new());
    let plain = Bridge::start(&database).await;
    let https = start(&database, &authority, &[]).await;
    let stream = plain.connect_live("bystander").await;
    let mut bystander = Bystander::watch(&database, "bystander", stream).await;
    let undisturbed = bystander.receive(100).await;

    let mut attacks = JoinSet::new();
    for (name, first, next) in REQUESTS {
        for (port, address) in [
            ("stream", plain.address()),
            ("admin", plain.admin_address()),
        ] {
            attacks.spawn(async move {
                let socket = TcpStream::connect(address).await.expect("a connection");
                let took = send_slowly(socket, first.as_bytes(), &[next]).await;
                (format!("{name} to the {port} port"), took)
            });
        }
        let (address, authority) = (https.address(), Arc::clone(&authority));
        attacks.spawn(async move {
            let socket = connect(address, &authority, "http/1.1").await.expect("TLS");
            let took = send_slowly(socket, first.as_bytes(), &[next]).await;
            (format!("{name} over TLS"), took)
        });
    }
    for (name, first) in [
        ("a handshake", &b""[..]),
        ("a late handshake", &[22, 3, 1, 2, 0]),
    ] {
        let address = https.address();
        attacks.spawn(async move {
            let socket = TcpStream::connect(address).await.expect("a connection");
            (name.to_owned(), send_slowly(socket, first, &[1]).await)
        });
    }
    let (address, of) = (https.address(), Arc::clone(&authority));
    attacks.spawn(async move {
        let socket = connect(address, &of, "h2").await.expect("TLS");
        let took = send_slowly(socket, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0", b"\0").await;
        ("a preface of HTTP/2".to_owned(), took)
    });
    attacks.spawn(idle(https.address(), Arc::clone(&authority)));
    attacks.spawn(endless(https.address(), Arc::clone(&authority)));

    bystander.receive(100).await.assert_close_to(&undisturbed);
    let elsewhere = Tunnel::to(https.address(), authority).await;
    for (address, user) in [(plain.address(), "alice"), (elsewhere.address, "bob")] {
        let took = time_to_first_row(address, &database, user).await;
        assert!(took <= Duration::from_secs(1), "{took:?}");
    }
    let took: Vec<(String, Duration)> = attacks.join_all().await;
    let endless: Vec<_> = took.iter().filter(|(_, took)| *took >= CUT_OFF).collect();
    assert!(endless.is_empty(), "not cut off: {endless:?}");
}

/// A connection over HTTP/2 without any request.
async fn idle(address: SocketAddr, authority: Arc<Authority>) -> (String, Duration) {
    let start = Instant::now();
    let (_frames, answers) = connect_without_room(address, &authority).await;
    let _ = timeout(CUT_OFF, answers.count()).await;
    ("nothing over HTTP/2".to_owned(), start.elapsed())
}

/// HTTP/2 headers that arrive slowly and never end.
async fn endless(address: SocketAddr, authority: Arc<Authority>) -> (String, Duration) {
    let start = Instant::now();
    let (mut frames, answers) = connect_without_room(address, &authority).await;
    let (first, next) = endless_request(0);
    let sending = async {
        let mut second = interval(Duration::from_secs(1));
        frames.send(&first).await?;
        loop {
            second.tick().await;
            frames.send(&next).await?;
        }
    };
    let closed = async {
        tokio::select! {
            outcome = sending => drop::<std::io::Result<()>>(outcome),
            _ = answers.count() => {}
        }
    };
    let _ = timeout(CUT_OFF, closed).await;
    ("headers over HTTP/2".to_owned(), start.elapsed())
}
