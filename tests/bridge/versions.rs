//! Clients of HTTP/1.0, which has neither chunks nor a required `Host`, and clients that ask for a
//! newer version.

use std::sync::Arc;

use crate::support::{
    bridge::{Bridge, token},
    database::Database,
    tls::{self, authority::Authority},
    wire::Wire,
};

/// Reads a stream to its end and checks that it consists of events, without chunk headers.
async fn stream(database: &Database, bridge: &Bridge, mut wire: Wire) {
    let head = wire.head().await;
    assert_eq!((head.version.as_str(), head.status), ("HTTP/1.0", 200));
    assert_eq!(
        head.header("content-type"),
        "text/event-stream; charset=utf-8"
    );
    for name in ["transfer-encoding", "content-length"] {
        assert!(!head.headers.contains_key(name), "{head:?}");
    }
    let mut text = wire.until("event: tidings.caught-up").await;
    assert!(text.contains("\ndata: from before\nid: "), "{text}");
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 100000) || n from generate_series(1, 20) n",
        )
        .await;
    text += &wire.until("x20\nid: ").await;
    database
        .until("select bool_and(sent) from notifications where user_id = 'alice'")
        .await;
    database.execute("select disconnect_user('alice')").await;
    text += &wire.rest().await;
    bridge.until_connections(0).await;
    // Every line is one of an event stream: a chunk would begin with its length.
    for line in text.lines() {
        let is_field = ["id: ", "id", "data: ", "event: ", "retry: ", ":"]
            .iter()
            .any(|field| line.starts_with(field));
        assert!(line.is_empty() || is_field, "{line:?}");
    }
    assert_eq!(text.matches("\ndata: xxx").count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_http_1_0_has_no_chunks_and_ends_with_the_connection() {
    let database = Database::migrated().await;
    let send = "select send_notification('alice', 'from before')";
    database.execute(send).await;
    let bridge = Bridge::start(&database).await;
    let request = |more: &str| {
        let token = token("alice");
        format!("GET /stream HTTP/1.0\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
    };
    let wire = Wire::plain(bridge.address(), request("")).await;
    stream(&database, &bridge, wire).await;

    // The same over TLS, and however a client asks to keep the connection.
    database.owner().execute("delete from notifications").await;
    database.execute(send).await;
    let authority = Arc::new(Authority::new());
    let bridge = tls::start(&database, &authority, &[]).await;
    let request = request("Host: localhost\r\nConnection: keep-alive\r\n");
    let wire = Wire::tls(bridge.address(), &authority, request).await;
    stream(&database, &bridge, wire).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_answer_over_http_1_0_has_a_length_and_ends_with_the_connection() {
    let database = Database::migrated().await;
    let limits = ["--max-connections-per-user=1"];
    let bridge = Bridge::start_with(&database, &limits).await;
    let _stream = bridge.connect_live("alice").await;
    let bearer = format!("Authorization: Bearer {}\r\n", token("alice"));
    let come_back = format!(
        "Accept: text/event-stream\r\nCookie: tidings_token={}\r\n",
        token("alice")
    );
    let (stream, admin) = (bridge.address(), bridge.admin_address());
    for (address, target, more, status) in [
        (stream, "GET /stream", "", 401),
        (stream, "GET /stream?replay=x", bearer.as_str(), 400),
        (stream, "GET /stream", "Origin: null\r\n", 403),
        (stream, "GET /nothing", "", 404),
        (stream, "PUT /stream", "", 405),
        (stream, "GET /stream", &bearer, 429),
        (stream, "GET /stream", &come_back, 200),
        (admin, "GET /", "", 200),
        (admin, "GET /overview", "", 200),
        (admin, "GET /database", "", 200),
        (admin, "GET /health/live", "", 200),
        (admin, "GET /health/ready", "", 200),
        (admin, "GET /metrics", "", 200),
        (admin, "OPTIONS /", "", 405),
        (
            admin,
            "GET /health/ready",
            "Connection: keep-alive\r\n",
            200,
        ),
        (admin, "GET /metrics", "TE: chunked\r\n", 200),
    ] {
        let mut wire = Wire::plain(address, format!("{target} HTTP/1.0\r\n{more}\r\n")).await;
        let head = wire.head().await;
        assert_eq!(head.version, "HTTP/1.0", "{target} {more}");
        assert_eq!(head.status, status, "{target} {more}");
        assert!(!head.headers.contains_key("transfer-encoding"), "{head:?}");
        let length: usize = head.header("content-length").parse().expect("a length");
        assert_eq!(wire.rest().await.len(), length, "{target} {more}");
    }
}

/// Java's `HttpClient` and `curl --http2` ask to upgrade to HTTP/2, which a server may ignore.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_upgrade_gets_an_ordinary_response() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let bearer = format!("Authorization: Bearer {}\r\n", token("alice"));
    for upgrade in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        "Connection: keep-alive\r\n",
        "",
    ] {
        let ask = async |address, path: &str, more: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{upgrade}{more}\r\n");
            let mut wire = Wire::plain(address, request).await;
            let head = wire.head().await;
            assert_eq!(head.header("connection"), "close", "{upgrade}");
            assert!(!head.headers.contains_key("upgrade"), "{upgrade}");
            (head, wire)
        };
        for (address, path, status) in [
            (bridge.address(), "/stream", 401),
            (bridge.address(), "/nothing", 404),
            (bridge.admin_address(), "/health/ready", 200),
        ] {
            let (head, wire) = ask(address, path, "").await;
            assert_eq!(head.status, status, "{upgrade}");
            let length: usize = head.header("content-length").parse().expect("a length");
            assert_eq!(wire.rest().await.len(), length);
        }
        let (head, mut wire) = ask(bridge.address(), "/stream", &bearer).await;
        assert_eq!(head.header("transfer-encoding"), "chunked");
        wire.until("event: tidings.caught-up").await;
    }
}
