//! Requests that never end, and request heads that are too large.

use std::net::{IpAddr, Ipv4Addr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    PATIENCE,
    bridge::{Bridge, SECRET, token},
    database::Database,
    event_source::{EventSource, get, get_from},
    process::Served,
    until,
};

/// A different client than the rest of the test.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A live stream of alice's from that client.
async fn stream_elsewhere(bridge: &Served) -> EventSource {
    let bearer = format!("Bearer {}", token("alice"));
    let headers = [("Authorization", bearer.as_str())];
    let answer = get_from(ELSEWHERE, bridge.address(), "/stream", &headers).await;
    let mut source = answer.expect("an answer").into_events().await;
    until(&mut source, "tidings.caught-up").await;
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_requests_from_one_address_keep_nobody_else_out() {
    const HALF_OPEN: usize = 5_000;
    rlimit::increase_nofile_limit(u64::MAX).expect("more open files");
    let database = Database::migrated().await;
    // Without the limit per address, one client could take all connections.
    let limits = [
        "--max-connections=3000",
        "--max-connections-per-address=200",
    ];
    let bridge = Served::start(&database, &limits).await;
    let mut before = stream_elsewhere(&bridge).await;

    let mut half_open = Vec::with_capacity(HALF_OPEN);
    for _ in 0..HALF_OPEN {
        let mut stream = TcpStream::connect(bridge.address())
            .await
            .expect("a socket");
        // A connection that was already cut off may return an error.
        let _ = stream
            .write_all(b"GET /stream HTTP/1.1\r\nHost: tidings\r\nX-")
            .await;
        half_open.push(stream);
    }
    // The bridge closes the last connections.
    let mut last = half_open.pop().expect("a socket");
    let end = timeout(PATIENCE, last.read_u8()).await.expect("an end");
    assert!(end.is_err(), "{end:?}");

    let mut after = stream_elsewhere(&bridge).await;
    database
        .execute("select send_notification('alice', 'still here')")
        .await;
    for source in [&mut before, &mut after] {
        assert_eq!(source.next_event().await.data, "still here");
    }
    // 200 streams, a quarter more, and 64.
    let kept = 200 + 50 + 64;
    assert!(bridge.refused("sockets").await >= (HALF_OPEN - kept - 1) as u64);

    // Closing them makes room.
    drop(half_open);
    let bearer = format!("Bearer {}", token("alice"));
    let coming_back = async {
        while get(bridge.address(), "/stream", &[("Authorization", &bearer)])
            .await
            .is_err()
        {}
    };
    timeout(PATIENCE, coming_back).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_of_a_proxy_are_not_one_clients() {
    let database = Database::migrated().await;
    let settings = [
        "--max-connections=200",
        "--max-connections-per-address=1",
        "--trusted-proxies=127.0.0.1",
    ];
    let bridge = Bridge::start_with(&database, &settings).await;
    let mut streams = Vec::new();
    for n in 0..100 {
        let address = format!("192.0.2.{n}");
        let headers = [("X-Forwarded-For", address.as_str())];
        streams.push(bridge.connect_with("alice", "", &headers).await);
    }
    assert_eq!(bridge.refused("sockets").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused_and_harms_nobody() {
    let database = Database::migrated().await;
    let settings = [
        "--trusted-proxies=127.0.0.1",
        "--trusted-user-header=X-User-Id",
    ];
    let bridge = Bridge::start_with(&database, &settings).await;
    let mut alice = bridge.connect_live("alice").await;
    let megabyte = "x".repeat(1 << 20);
    let bearer = format!("Bearer {megabyte}");
    let cookie = format!("tidings_token={megabyte}");
    let path = format!("/stream?last_event_id={megabyte}");
    let requests = [
        ("/stream", ("X-User-Id", megabyte.as_str())),
        ("/stream", ("Authorization", bearer.as_str())),
        ("/stream", ("Cookie", cookie.as_str())),
        ("/stream", ("X-Other", megabyte.as_str())),
        (path.as_str(), ("X-Other", "x")),
    ];
    for (path, header) in requests {
        // A server that stops reading may close the connection before everything is written.
        if let Ok(answer) = get(bridge.address(), path, &[header]).await {
            let status = answer.status();
            assert!((400..500).contains(&status), "{}: {status}", header.0);
        }
    }
    // As many header lines as fit don't disturb other clients either.
    let many: Vec<_> = (0..200).map(|_| ("X-Other", "x")).collect();
    if let Ok(answer) = get(bridge.address(), "/stream", &many).await {
        assert!((400..500).contains(&answer.status()), "{}", answer.status());
    }
    // A head within the limits that names no valid user gets a 401.
    let long = "x".repeat(60_000);
    let claims = serde_json::json!({ "sub": long, "exp": 4_000_000_000_u64 });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
    let bearer = format!("Bearer {}", token.expect("a token"));
    for header in [
        ("X-User-Id", long.as_str()),
        ("Authorization", bearer.as_str()),
    ] {
        let answer = get(bridge.address(), "/stream", &[header]).await;
        assert_eq!(answer.expect("an answer").status(), 401, "{}", header.0);
    }
    database
        .execute("select send_notification('alice', 'still here')")
        .await;
    assert_eq!(alice.next_event().await.data, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_after_its_request_is_not_read_and_much_of_it_ends_the_stream() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[]).await;
    let mut alice = TcpStream::connect(bridge.address())
        .await
        .expect("a socket");
    let bearer = token("alice");
    let request =
        format!("GET /stream HTTP/1.1\r\nHost: tidings\r\nAuthorization: Bearer {bearer}\r\n\r\n");
    alice
        .write_all(request.as_bytes())
        .await
        .expect("a request");
    read_until(&mut alice, "tidings.caught-up").await;
    alice.write_all(request.as_bytes()).await.expect("another");
    database
        .execute("select send_notification('alice', 'still here')")
        .await;
    let text = read_until(&mut alice, "still here").await;
    assert!(!text.contains("HTTP/1.1"), "{text}");

    let talking = async { while alice.write_all(&[b'x'; 4_096]).await.is_ok() {} };
    timeout(PATIENCE, talking).await.expect("an end");
}

/// Reads until `text` has arrived, and returns everything read.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut come = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&come).contains(text) {
            come.push(stream.read_u8().await.expect("more"));
        }
    };
    timeout(PATIENCE, reading).await.expect("the text");
    String::from_utf8_lossy(&come).into_owned()
}
