//! Which `Host` values the admin address accepts: a web page whose own name resolves to this
//! machine (DNS rebinding) must not read it.

use crate::support::{
    bridge::{Bridge, serve_options},
    database::Database,
    event_source::get,
    wire::Wire,
};

const PATHS: [&str; 7] = [
    "/",
    "/overview",
    "/database",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/nothing",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_loopback_admin_address_accepts_loopback_hosts_only() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let address = bridge.admin_address();
    let port = address.port();
    let foreign = format!("tidings.example:{port}");
    for path in PATHS {
        let headers = [
            ("Host", foreign.as_str()),
            ("X-Forwarded-Host", "localhost"),
            ("Forwarded", "host=localhost"),
        ];
        let answer = get(address, path, &headers).await.expect("an answer");
        assert_eq!(answer.status(), 403, "{path}");
        let body = answer.text().await;
        assert!(
            body.contains("localhost") && !body.contains("version"),
            "{body}"
        );
    }
    for host in [
        "127.0.0.1.tidings.example",
        "localhost.tidings.example",
        "localhost@tidings.example",
        "10.0.0.1",
        "0.0.0.0",
        "",
        "localhost, tidings.example",
    ] {
        let answer = get(address, "/health/live", &[("Host", host)]).await;
        let status = answer.expect("an answer").status();
        assert!(status == 403 || status == 400, "{host}: {status}");
    }
    for host in [
        format!("localhost:{port}"),
        "LocalHost".to_owned(),
        format!("127.0.0.1:{port}"),
        "127.1.2.3".to_owned(),
        format!("[::1]:{port}"),
    ] {
        let answer = get(address, "/health/live", &[("Host", &host)]).await;
        assert_eq!(answer.expect("an answer").status(), 200, "{host}");
    }
    // The request target may contain a host too, which must be the same.
    let ask = async |request: String| Wire::plain(address, request).await.head().await.status;
    let absolute = |target: &str, host: &str| {
        format!("GET http://{target}/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n")
    };
    assert_eq!(ask(absolute("localhost", "localhost")).await, 200);
    assert_eq!(ask(absolute("tidings.example", "localhost")).await, 403);
    assert_eq!(ask(absolute("localhost", "tidings.example")).await, 403);
    // Browsers always send a host; health checks over HTTP/1.0 often don't.
    assert_eq!(
        ask("GET /health/ready HTTP/1.0\r\n\r\n".to_owned()).await,
        200
    );
}

/// Kubernetes probes use the pod's address, monitoring systems a host name.
#[tokio::test(flavor = "multi_thread")]
async fn other_admin_addresses_accept_every_host() {
    let database = Database::migrated().await;
    let mut options = serve_options(&database, &[]);
    options.bridge.admin_listen = "0.0.0.0:0".parse().expect("an address");
    let bridge = Bridge::start_as(&options).await;
    let address = (std::net::Ipv4Addr::LOCALHOST, bridge.admin_address().port());
    for host in ["bridge-1.example:8081", "10.0.0.1:8081", "localhost"] {
        let answer = get(address.into(), "/health/live", &[("Host", host)]).await;
        assert_eq!(answer.expect("an answer").status(), 200, "{host}");
    }
}
