//! Methods: every GET route supports HEAD, and other methods get a 405 with `Allow`.

use http::Method;
use serde_json::Value;

use crate::support::{
    bridge::{Bridge, token},
    database::Database,
    tls::{self, authority::Authority, http2::Http2},
    wire::{Head, Wire},
};

const ADMIN: [&str; 6] = [
    "/",
    "/overview",
    "/database",
    "/health/live",
    "/health/ready",
    "/metrics",
];

/// Unknown methods are treated the same.
const OTHERS: [&str; 8] = [
    "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get",
];

async fn ask(
    address: std::net::SocketAddr,
    method: &str,
    path: &str,
    more: &str,
) -> (Head, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n");
    let mut wire = Wire::plain(address, request).await;
    let head = wire.head().await;
    (head, wire.rest().await)
}

/// Checks that a response rejects the method and lists the allowed ones.
fn refuses(head: &Head, body: &str, allowed: &str, method: &str) {
    assert_eq!(head.status, 405, "{method}: {body}");
    assert_eq!(head.header("allow"), allowed, "{method}");
    assert_eq!(head.header("content-type"), "application/problem+json");
    let problem: Value = serde_json::from_str(body).expect("JSON");
    let detail = problem["detail"].as_str().expect("a text");
    assert!(
        detail.contains(method) && detail.contains(allowed),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_address_answers_head_as_get_and_refuses_other_methods() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let address = bridge.admin_address();
    for path in ADMIN {
        let (get, body) = ask(address, "GET", path, "").await;
        assert!(get.status == 200 && !body.is_empty(), "{path}: {get:?}");
        let (mut head, body) = ask(address, "HEAD", path, "").await;
        assert_eq!((head.status, body.as_str()), (get.status, ""), "{path}");
        // Metric values change from one response to the next, and with them the length.
        let length = head.headers.remove("content-length").expect("a length");
        assert_ne!(length, "0", "{path}");
        let mut expected = get.headers;
        expected.remove("content-length");
        assert_eq!(head.headers, expected, "{path}");
        for method in OTHERS {
            let (head, body) = ask(address, method, path, "").await;
            refuses(&head, &body, "GET, HEAD", method);
        }
    }
    for method in ["GET", "POST"] {
        let (head, body) = ask(address, method, "/nothing", "").await;
        assert!(
            head.status == 404 && body.contains("/health/ready"),
            "{body}"
        );
    }
    assert_eq!(ask(address, "HEAD", "/nothing", "").await.0.status, 404);
    for (method, target) in [("OPTIONS", "*"), ("CONNECT", &address.to_string())] {
        let (head, body) = ask(address, method, target, "").await;
        refuses(&head, &body, "GET, HEAD", method);
    }
    bridge.stop().await;
}

/// Health checks of `HAProxy`, `wget --spider` and uptime monitors use HEAD.
#[tokio::test(flavor = "multi_thread")]
async fn head_reports_readiness() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .owner()
        .execute("alter table notifications disable trigger all")
        .await;
    bridge.until_ready_is(503).await;
    let (head, body) = ask(bridge.admin_address(), "HEAD", "/health/ready", "").await;
    assert_eq!((head.status, body.as_str()), (503, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_the_stream_answers_as_get_and_opens_and_marks_nothing() {
    let database = Database::migrated().await;
    let limits = ["--max-connections-per-user=1"];
    let bridge = Bridge::start_with(&database, &limits).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;
    let address = bridge.address();
    let bearer = format!("Authorization: Bearer {}\r\n", token("alice"));
    let other = format!("Authorization: Bearer {}\r\n", token("bob"));
    // Over HTTP/1.0 too, which has no chunks.
    for (version, framing) in [("1.1", "chunked"), ("1.0", "")] {
        let request = format!("HEAD /stream HTTP/{version}\r\nHost: h\r\n{bearer}\r\n");
        let mut wire = Wire::plain(address, request).await;
        let head = wire.head().await;
        assert_eq!((head.status, wire.rest().await.as_str()), (200, ""));
        assert_eq!(head.header("transfer-encoding"), framing);

        let request = format!("GET /stream HTTP/{version}\r\nHost: h\r\n{other}\r\n");
        let mut wire = Wire::plain(address, request).await;
        assert_eq!(wire.head().await.headers, head.headers);
        drop(wire);
        bridge.until_connections(0).await;
    }
    // Errors too.
    for (path, more) in [
        ("/stream", ""),
        ("/stream?replay=x", bearer.as_str()),
        ("/stream", "Origin: https://evil.example\r\n"),
        ("/nothing", ""),
    ] {
        let (get, body) = ask(address, "GET", path, more).await;
        assert!(get.status >= 400 && !body.is_empty());
        let (head, body) = ask(address, "HEAD", path, more).await;
        assert_eq!((head.status, head.headers), (get.status, get.headers));
        assert_eq!(body, "");
    }
    let metrics = bridge.admin("/metrics").await.text().await;
    let opened = "tidings_connections_opened_total 2";
    assert!(metrics.lines().any(|line| line == opened), "{metrics}");
    let sent = "select id from notifications where sent";
    assert_eq!(database.ids(sent).await, [0; 0]);

    // The connection limit applies, but HEAD itself doesn't use up a connection.
    let _stream = bridge.connect_live("alice").await;
    let (head, body) = ask(address, "HEAD", "/stream", &bearer).await;
    assert_eq!((head.status, body.as_str()), (429, ""));
    assert!(head.headers.contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_refuses_other_methods_and_keeps_its_preflight() {
    let database = Database::migrated().await;
    let settings = ["--cors-origins=https://app.example.org"];
    let bridge = Bridge::start_with(&database, &settings).await;
    let bearer = format!("Authorization: Bearer {}\r\n", token("alice"));
    for method in OTHERS {
        for more in ["", bearer.as_str()] {
            let (head, body) = ask(bridge.address(), method, "/stream", more).await;
            refuses(&head, &body, "GET, HEAD", method);
        }
    }
    for (method, target) in [("OPTIONS", "*"), ("CONNECT", "localhost:80")] {
        let (head, body) = ask(bridge.address(), method, target, "").await;
        refuses(&head, &body, "GET, HEAD", method);
    }
    let preflight = "Origin: https://app.example.org\r\nAccess-Control-Request-Method: GET\r\n";
    let (head, _) = ask(bridge.address(), "OPTIONS", "/stream", preflight).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("access-control-allow-methods"), "GET");
    // A page of an allowed origin can read the response.
    let origin = "Origin: https://app.example.org\r\n";
    let (head, body) = ask(bridge.address(), "PUT", "/stream", origin).await;
    refuses(&head, &body, "GET, HEAD", "PUT");
    let allowed = head.header("access-control-allow-origin");
    assert_eq!(allowed, "https://app.example.org");
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_are_the_same_over_http_2() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = tls::start(&database, &authority, &[]).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let bearer = format!("Bearer {}", token("alice"));
    let ask = async |method: &str| {
        let target = match method {
            "CONNECT" => "localhost:443",
            _ => "https://localhost/stream",
        };
        let request = http::Request::builder()
            .method(Method::from_bytes(method.as_bytes()).expect("a method"))
            .uri(target)
            .header("authorization", &bearer);
        let (answer, _request) = connection.ask(request).await;
        answer.expect("an answer")
    };
    let head = ask("HEAD").await;
    assert_eq!(head.status(), 200);
    assert_eq!(
        head.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    assert_eq!(head.headers()["x-accel-buffering"], "no");
    assert!(head.body().is_end_stream());
    for method in OTHERS.into_iter().chain(["CONNECT"]) {
        let answer = ask(method).await;
        assert_eq!(answer.status(), 405, "{method}");
        assert_eq!(answer.headers()["allow"], "GET, HEAD");
    }
    let sent = "select id from notifications where sent";
    assert_eq!(database.ids(sent).await, [0; 0]);
    let metrics = bridge.admin("/metrics").await.text().await;
    let opened = "tidings_connections_opened_total 0";
    assert!(metrics.lines().any(|line| line == opened), "{metrics}");
    // The connection still works.
    let mut stream = connection.open("alice").await;
    stream.until("data: a secret\nid: ").await;
}
