//! Pages of other origins: what they receive, and that no rows are sent to them.

use std::{net::IpAddr, sync::Arc};

use crate::support::{
    bridge::{Bridge, token},
    database::Database,
    event_source::{EventSource, Response, get, get_from, options},
    tls::{
        self,
        authority::Authority,
        http2::Http2,
        tunnel::{ORIGIN, Tunnel},
    },
};

const APP: &str = "https://app.example.org";
const ALLOWED: &str = "--cors-origins=https://app.example.org,https://admin.example.org:8443";

async fn ask(bridge: &Bridge, headers: &[(&str, &str)]) -> Response {
    get(bridge.address(), "/stream", headers)
        .await
        .expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_somebody_else_opens_no_stream_and_marks_nothing() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[ALLOWED]).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;
    let cookie = format!("tidings_token={}", token("alice"));
    let cookie = ("Cookie", cookie.as_str());
    let own = format!("http://{}", bridge.address());
    let port = format!("http://{}", bridge.address().ip());
    let encrypted = format!("https://{}", bridge.address());
    for header in [
        ("Origin", "https://evil.example.org"),
        ("Origin", "https://app.example.org.evil.example"),
        ("Origin", "http://app.example.org"),
        ("Origin", "https://admin.example.org"),
        ("Origin", "null"),
        ("Origin", &port),
        ("Origin", &encrypted),
        ("Origin", "capacitor://localhost"),
        (
            "Origin",
            "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        ),
        ("Origin", "file://"),
        // An image, a script, or a link in a frame.
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let refused = bridge.refused("origin").await;
        let answer = ask(&bridge, &[cookie, header]).await;
        assert_eq!(answer.status(), 403, "{header:?}");
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let body = answer.text().await;
        assert!(body.contains("TIDINGS_CORS_ORIGINS"), "{body}");
        // Checked before authentication.
        assert_eq!(ask(&bridge, &[header]).await.status(), 403, "{header:?}");
        assert_eq!(bridge.refused("origin").await, refused + 2);
    }
    assert_eq!(bridge.refused("identity").await, 0);
    let unsent = "select id from notifications where not sent";
    assert_eq!(database.ids(unsent).await, [1]);

    for headers in [
        &[cookie][..],
        &[cookie, ("Origin", &own)],
        &[cookie, ("Origin", APP), ("Sec-Fetch-Site", "cross-site")],
        &[cookie, ("Sec-Fetch-Site", "same-origin")],
        &[cookie, ("Sec-Fetch-Site", "none")],
    ] {
        assert_eq!(ask(&bridge, headers).await.status(), 200, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_origin_may_read_the_whole_response() {
    let database = Database::migrated().await;
    let settings = [ALLOWED, "--max-connections-per-user=1"];
    let bridge = Bridge::start_with(&database, &settings).await;
    let cookie = format!("tidings_token={}", token("alice"));
    let (cookie, origin) = (("Cookie", cookie.as_str()), ("Origin", APP));
    let _stream = EventSource::open(bridge.address(), "/stream", &[cookie, origin]).await;
    let path = "/stream?replay=x";
    let bad = get(bridge.address(), path, &[cookie, origin]).await;
    for (answer, status) in [
        (ask(&bridge, &[origin]).await, 401),
        (bad.expect("an answer"), 400),
        (ask(&bridge, &[cookie, origin]).await, 429),
    ] {
        assert_eq!(answer.status(), status);
        let header = |name| answer.header(name).unwrap_or_default();
        assert_eq!(header("access-control-allow-origin"), APP, "{status}");
        assert_eq!(header("access-control-allow-credentials"), "true");
        assert!(header("vary").to_lowercase().contains("origin"), "{status}");
        assert!(
            header("access-control-expose-headers").contains("retry-after"),
            "{status}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_allows_what_a_stream_needs_and_no_more() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[ALLOWED]).await;
    let preflight = async |origin: &str, method: &str, headers: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", method),
            ("Access-Control-Request-Headers", headers),
        ];
        options(bridge.address(), "/stream", &headers)
            .await
            .expect("an answer")
    };
    let answer = preflight(APP, "GET", "authorization, last-event-id, cache-control").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some(APP));
    assert_eq!(
        answer.header("access-control-allow-credentials"),
        Some("true")
    );
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET"));
    let allowed = answer.header("access-control-allow-headers");
    let mut allowed: Vec<_> = allowed.unwrap_or_default().split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["authorization", "cache-control", "last-event-id"]);

    for (origin, method, headers) in [
        ("https://evil.example.org", "GET", "authorization"),
        ("null", "GET", "authorization"),
        (APP, "POST", "authorization"),
        (APP, "GET", "x-user-id"),
    ] {
        let answer = preflight(origin, method, headers).await;
        let status = answer.status();
        assert!((400..500).contains(&status), "{origin} {method} {headers}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_apps_and_extensions_can_be_allowed() {
    let origins = [
        "capacitor://localhost",
        "ionic://localhost",
        "tauri://localhost",
        "http://tauri.localhost",
        "app://-",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
        "moz-extension://0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        "safari-web-extension://2E1B5A5F-0B5A-4F3B-9C0A-8F0A5B5C5D5E",
    ];
    let database = Database::migrated().await;
    let setting = format!("--cors-origins={}", origins.join(","));
    let bridge = Bridge::start_with(&database, &[&setting]).await;
    let bearer = format!("Bearer {}", token("alice"));
    let bearer = ("Authorization", bearer.as_str());
    for origin in origins {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        let preflight = options(bridge.address(), "/stream", &headers).await;
        let preflight = preflight.expect("an answer");
        assert_eq!(preflight.status(), 200, "{origin}");
        let answer = ask(&bridge, &[bearer, ("Origin", origin)]).await;
        assert_eq!(answer.status(), 200, "{origin}");
        for answer in [preflight, answer] {
            // Exactly as sent, or the browser withholds the response from the page.
            let allowed = answer.header("access-control-allow-origin");
            assert_eq!(allowed, Some(origin));
            let credentials = answer.header("access-control-allow-credentials");
            assert_eq!(credentials, Some("true"));
        }
    }
    for origin in [
        "capacitor://localhost:8100",
        "capacitor://localhost.evil.example",
        "tauri://evil",
        "https://tauri.localhost",
        "chrome-extension://ponmlkjihgfedcbaponmlkjihgfedcba",
        "null",
        "file://",
    ] {
        let answer = ask(&bridge, &[bearer, ("Origin", origin)]).await;
        assert_eq!(answer.status(), 403, "{origin}");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

/// A page that was loaded without TLS may come from an attacker in the network.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_origin_check_includes_the_scheme() {
    let database = Database::migrated().await;
    let authority = Arc::new(Authority::new());
    let bridge = tls::start(&database, &authority, &[]).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;
    let tunnel = Tunnel::to(bridge.address(), Arc::clone(&authority)).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let bearer = format!("Bearer {}", token("alice"));
    for (origin, expected) in [("http", 403), ("https", 200)] {
        let origin = format!("{origin}://{ORIGIN}");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Host", ORIGIN),
            ("Origin", origin.as_str()),
        ];
        let answer = get(tunnel.address, "/stream", &headers).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), expected, "{origin}");
        if expected == 403 {
            let body = answer.text().await;
            assert!(body.contains("X-Forwarded-Proto"), "{body}");
        }
        let request = http::Request::get(format!("https://{ORIGIN}/stream"))
            .header("authorization", &bearer)
            .header("origin", &origin);
        let (answer, _request) = connection.ask(request).await;
        assert_eq!(answer.expect("an answer").status(), expected, "{origin}");
        let sent = "select id from notifications where sent";
        if expected == 403 {
            assert_eq!(database.ids(sent).await, [0; 0]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_scheme_is_taken_from_trusted_proxies_only() {
    let database = Database::migrated().await;
    let proxy = "--trusted-proxies=127.0.0.1";
    let bridge = Bridge::start_with(&database, &[proxy]).await;
    let bearer = format!("Bearer {}", token("alice"));
    let ask = async |client: &str, origin: &str, header: (&str, &str)| {
        let client: IpAddr = client.parse().expect("an address");
        let headers = [
            ("Authorization", bearer.as_str()),
            ("Host", "tidings.example"),
            ("Origin", origin),
            header,
        ];
        let answer = get_from(client, bridge.address(), "/stream", &headers).await;
        answer.expect("an answer").status()
    };
    let (http, https) = ("http://tidings.example", "https://tidings.example");
    for said in [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Proto", " HTTPS"),
        ("Forwarded", "for=192.0.2.1;proto=https"),
        (
            "Forwarded",
            "proto=http, for=\"[2001:db8::1]\";Proto=\"https\";by=127.0.0.1",
        ),
    ] {
        assert_eq!(ask("127.0.0.1", https, said).await, 200, "{said:?}");
        assert_eq!(ask("127.0.0.1", http, said).await, 403, "{said:?}");
        // From any other client the headers are ignored.
        assert_eq!(ask("127.0.0.2", https, said).await, 403, "{said:?}");
        assert_eq!(ask("127.0.0.2", http, said).await, 200, "{said:?}");
    }
    for unsaid in [
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Proto", ""),
        ("X-Forwarded-Proto", "https, http"),
        ("Forwarded", "for=192.0.2.1"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Ssl", "on"),
    ] {
        assert_eq!(ask("127.0.0.1", https, unsaid).await, 403, "{unsaid:?}");
        assert_eq!(ask("127.0.0.1", http, unsaid).await, 200, "{unsaid:?}");
    }
}
