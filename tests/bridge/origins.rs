//! Pages of others: what they are answered, and that nothing is sent to them.

use crate::support::{
    bridge::{Bridge, token},
    database::Database,
    event_source::{EventSource, Response, get, options},
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
    for header in [
        ("Origin", "https://evil.example.org"),
        ("Origin", "https://app.example.org.evil.example"),
        ("Origin", "http://app.example.org"),
        ("Origin", "https://admin.example.org"),
        ("Origin", "null"),
        ("Origin", &port),
        // An image, a script, a link's target in a frame.
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
        // Before anybody asks who it is.
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
async fn a_listed_origin_may_read_everything_that_it_is_told() {
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
