//! HTTPS: what holds over plain HTTP/1.1 also holds over TLS and HTTP/2.

use std::sync::Arc;

use tidings::{app::Parts, config::ConfigError, monitoring::logging::ErrorChain};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::tls::{
    authority::Authority,
    http2::Http2,
    start,
    tunnel::{ORIGIN, Tunnel},
};
use crate::support::{
    PATIENCE,
    bridge::{serve_options, token},
    database::Database,
    event_source::EventSource,
    until,
};

/// More than the six connections that a browser opens to one host over HTTP/1.1.
const STREAMS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_over_http_2_carries_many_streams() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    database
        .execute("select send_notification('user0', 'from before')")
        .await;
    let mut streams = Vec::new();
    for number in 0..STREAMS {
        let mut stream = connection.open(&format!("user{number}")).await;
        if number == 0 {
            stream.until("data: from before\nid: ").await;
        }
        stream.until("event: tidings.caught-up").await;
        streams.push(stream);
    }
    bridge.until_connections(STREAMS).await;
    database
        .execute(&format!(
            "insert into notifications (user_id, text)
             select 'user' || n, 'for user' || n from generate_series(0, {STREAMS} - 1) n"
        ))
        .await;
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.until(&format!("data: for user{number}\nid: ")).await;
    }
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_http_2_are_told_when_to_come_back_as_the_bridge_stops() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let mut stream = connection.open("alice").await;
    stream.until("event: tidings.caught-up").await;
    let (rest, ()) = tokio::join!(stream.rest(), bridge.stop());
    assert!(rest.contains("retry: "), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_larger_than_every_window_arrives_whole_over_http_2() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    database
        .execute(
            "insert into notifications (user_id, text)
             select 'alice', repeat('x', 100000) || n from generate_series(1, 20) n",
        )
        .await;
    let mut stream = connection.open("alice").await;
    for number in 1..=20 {
        stream.until(&format!("x{number}\nid: ")).await;
    }
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_client_has_no_room_for_is_not_sent_over_http_2() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    database
        .execute("select send_notification('alice', repeat('x', 100000))")
        .await;
    let full = Http2::connect(bridge.address(), &authority).await;
    let mut alice = full.open("alice").await;
    alice.fill_window().await;
    // Marks are written in order: once bob's is, alice's would have been.
    let connection = Http2::connect(bridge.address(), &authority).await;
    let mut bob = connection.open("bob").await;
    bob.until("event: tidings.caught-up").await;
    database
        .execute("select send_notification('bob', 'meanwhile')")
        .await;
    bob.until("data: meanwhile\nid: ").await;
    database
        .until("select sent from notifications where user_id = 'bob'")
        .await;
    let sent = "select id from notifications where user_id = 'alice' and sent";
    assert_eq!(database.ids(sent).await, [0; 0]);
    alice.release_window();
    alice.until("x\nid: ").await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_http_2_that_is_gone_is_noticed_at_the_next_heartbeat() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &["--heartbeat=1s"]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let one = connection.open("alice").await;
    let mut other = connection.open("alice").await;
    bridge.until_connections(2).await;
    // One tab is closed, then the browser.
    one.reset();
    bridge.until_connections(1).await;
    database
        .execute("select send_notification('alice', 'still here')")
        .await;
    other.until("data: still here\nid: ").await;
    drop((other, connection));
    bridge.until_connections(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_1_over_tls_streams_too_and_notices_at_once_who_is_gone() {
    let database = Database::migrated().await;
    let authority = Arc::new(Authority::new());
    // No heartbeat helps.
    let bridge = start(&database, &authority, &["--heartbeat=300s"]).await;
    let tunnel = Tunnel::to(bridge.address(), authority).await;
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("Authorization", bearer.as_str())];
    let mut source = EventSource::open(tunnel.address, "/stream", &headers).await;
    until(&mut source, "tidings.caught-up").await;
    database
        .execute("select send_notification('alice', 'over TLS')")
        .await;
    assert_eq!(source.next_event().await.data, "over TLS");
    database
        .until("select bool_and(sent) from notifications")
        .await;
    drop(source);
    bridge.until_connections(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_at_the_https_port_gets_nothing_and_harms_nobody() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = start(&database, &authority, &[]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let mut stream = connection.open("alice").await;
    for said in [
        format!(
            "GET /stream HTTP/1.1\r\nAuthorization: Bearer {}\r\n\r\n",
            token("alice")
        ),
        "\0".repeat(10_000),
    ] {
        let mut socket = TcpStream::connect(bridge.address()).await.expect("a port");
        socket.write_all(said.as_bytes()).await.expect("a write");
        let mut answer = Vec::new();
        // Either an alert and the end, or an RST.
        let _ = timeout(PATIENCE, socket.read_to_end(&mut answer))
            .await
            .expect("an end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("HTTP"), "{answer}");
    }
    bridge.until_connections(1).await;
    database
        .execute("select send_notification('alice', 'unharmed')")
        .await;
    stream.until("data: unharmed\nid: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_pair_or_a_wrong_one_is_refused_at_start() {
    let database = Database::empty().await;
    let authority = Authority::new();
    let [certificate, key] = authority.issue("one", &[ORIGIN]).settings();
    let [_, other_key] = authority.issue("other", &[ORIGIN]).settings();
    let refusal = |settings: &[&str]| {
        let options = serve_options(&database, settings);
        let error = Parts::of(&options).err().expect("a refusal");
        assert!(error.to_string().contains("TIDINGS_TLS_KEY"), "{error}");
        error
    };
    for half in [&certificate, &key] {
        assert!(matches!(refusal(&[half]), ConfigError::HalfTls));
    }
    let error = ErrorChain(&refusal(&[&certificate, &other_key])).to_string();
    assert!(error.contains("doesn't match"), "{error}");
    let swapped = [
        certificate.replace("--tls-cert", "--tls-key"),
        key.replace("--tls-key", "--tls-cert"),
    ];
    let error = ErrorChain(&refusal(&[&swapped[0], &swapped[1]])).to_string();
    assert!(error.contains("contains no certificate"), "{error}");
}
