//! Only a trusted proxy may say which client or user a request comes from.

use tidings::{app::Parts, config::ConfigError};

use crate::support::{
    bridge::{Bridge, serve_options, token},
    database::Database,
    event_source::{EventSource, get, get_from},
    process::{Served, refusal},
    tls::{self, authority::Authority, http2::Http2},
};

const HEADER: &str = "--trusted-user-header=X-User-Id";
const PROXY: &str = "--trusted-proxies=127.0.0.1";

async fn status(bridge: &Bridge, headers: &[(&str, &str)]) -> u16 {
    get(bridge.address(), "/stream", headers)
        .await
        .expect("an answer")
        .status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_trusted_names_the_user_and_nobody_else_does() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[HEADER, PROXY]).await;
    let alice = ("X-User-Id", "alice");
    let mut source = EventSource::open(bridge.address(), "/stream", &[alice]).await;
    assert_eq!(source.next_event().await.name, "tidings.caught-up");
    drop(source);
    bridge.until_connections(0).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;

    // From an address that is not a proxy's, whatever headers and other credentials it sends.
    let bearer = format!("Bearer {}", token("alice"));
    let elsewhere = "127.0.0.2".parse().expect("an address");
    for headers in [
        &[alice][..],
        &[alice, ("X-Forwarded-For", "127.0.0.1")],
        &[("X-User-Id", "bob"), ("Authorization", &bearer)],
        &[alice, ("Authorization", &bearer)],
    ] {
        let answer = get_from(elsewhere, bridge.address(), "/stream", headers).await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 401, "{headers:?}");
        let body = answer.text().await;
        assert!(body.contains("proxy") && !body.contains("secret"), "{body}");
    }
    assert_eq!(bridge.refused("identity").await, 4);
    // From the proxy, but with headers that can't be right.
    let long = "x".repeat(256);
    for headers in [
        &[alice, alice][..],
        &[alice, ("X-User-Id", "bob")],
        &[("X-User-Id", "")],
        &[("X-User-Id", " ")],
        &[("X-User-Id", &long)],
        &[("X-User-Id", "bob"), ("Authorization", &bearer)],
        &[alice, ("Authorization", "Bearer x")],
        &[alice, ("Cookie", "tidings_token=x")],
    ] {
        assert_eq!(status(&bridge, headers).await, 401, "{headers:?}");
    }
    assert_eq!(
        database
            .ids("select id from notifications where sent")
            .await,
        [0; 0]
    );
    assert_eq!(
        status(&bridge, &[alice, ("Authorization", &bearer)]).await,
        200
    );
    assert_eq!(status(&bridge, &[("Authorization", &bearer)]).await, 200);
    assert_eq!(status(&bridge, &[]).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_no_text_is_nobodys() {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &[HEADER, PROXY]).await;
    for (name, expected) in [
        (&b"al\xefice"[..], "401"),
        ("b\u{fc}rger".as_bytes(), "200"),
    ] {
        let mut stream = TcpStream::connect(bridge.address())
            .await
            .expect("a socket");
        let head = b"GET /stream HTTP/1.1\r\nHost: tidings\r\nX-User-Id: ";
        let request = [head, name, b"\r\n\r\n"].concat();
        stream.write_all(&request).await.expect("a request");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer, format!("HTTP/1.1 {expected}"));
    }
}

/// HTTP/1.1 parsers remove the whitespace around a header's value; HTTP/2 delivers it.
#[tokio::test(flavor = "multi_thread")]
async fn whitespace_around_header_values_is_removed_over_http_2_too() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let bridge = tls::start(&database, &authority, &[HEADER, PROXY]).await;
    let connection = Http2::connect(bridge.address(), &authority).await;
    let bearer = format!("Bearer {}", token("alice"));
    for (name, expected) in [
        ("\talice ", 200),
        ("alice", 200),
        (" ", 401),
        ("al ice", 401),
    ] {
        // The header and the token must name the same user.
        let request = http::Request::get("https://localhost/stream")
            .header("x-user-id", name)
            .header("authorization", &bearer);
        let (answer, _request) = connection.ask(request).await;
        assert_eq!(answer.expect("an answer").status(), expected, "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_configured_is_not_looked_at() {
    let database = Database::migrated().await;
    // Without the header setting, the header has no meaning and authenticates no user.
    let bridge = Bridge::start_with(&database, &[PROXY]).await;
    let alice = ("X-User-Id", "alice");
    let bearer = format!("Bearer {}", token("bob"));
    assert_eq!(status(&bridge, &[alice]).await, 401);
    assert_eq!(
        status(&bridge, &[alice, ("Authorization", &bearer)]).await,
        200
    );
    // Without a secret, Authorization is ignored: it may hold the proxy's own credentials.
    let mut options = serve_options(&database, &[HEADER, PROXY]);
    options.jwt.secrets.jwt_secret = None;
    let bridge = Bridge::start_as(&options).await;
    assert_eq!(
        status(&bridge, &[alice, ("Authorization", &bearer)]).await,
        200
    );
    assert_eq!(status(&bridge, &[("Authorization", &bearer)]).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_nobody_may_set_is_a_mistake_and_one_that_anybody_reaches_a_warning() {
    let database = Database::migrated().await;
    let options = serve_options(&database, &[HEADER]);
    let error = Parts::of(&options).err().expect("a refusal");
    assert!(matches!(error, ConfigError::NoProxies), "{error}");
    assert!(error.to_string().contains("TIDINGS_TRUSTED_PROXIES"));

    let warnings = |more: &[&str]| {
        let mut options = serve_options(&database, more);
        options.bridge.listen = "0.0.0.0:8080".parse().expect("an address");
        options.warnings()
    };
    assert_eq!(
        serve_options(&database, &[HEADER, PROXY]).warnings(),
        [""; 0]
    );
    assert_eq!(warnings(&[PROXY]), [""; 0]);
    let reachable = warnings(&[HEADER, PROXY]);
    assert!(reachable[0].contains("firewall"), "{reachable:?}");
    let boundless = warnings(&["--trusted-proxies=10.0.0.0/8,0.0.0.0/0"]);
    assert!(boundless[0].contains("whole internet"), "{boundless:?}");

    // The warnings are logged before anything else can fail.
    let empty = Database::empty().await;
    let said = refusal(&empty, &["--trusted-proxies=::/0", "--migrate=never"]).await;
    assert!(said.contains("whole internet"), "{said}");

    let mut bridge = Served::start(&database, &["--trusted-proxies=::/0"]).await;
    let forwarded = [("X-Forwarded-For", "192.0.2.1")];
    let answer = get(bridge.address(), "/stream", &forwarded).await;
    assert_eq!(answer.expect("an answer").status(), 401);
    bridge
        .until_logged("WARN", "add it to TIDINGS_TRUSTED_PROXIES")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_address_is_believed_from_a_proxy_alone() {
    let database = Database::migrated().await;
    let limits = ["--max-connections-per-address=1"];
    // Without a proxy, all requests come from one address, whatever they contain.
    let bridge = Bridge::start_with(&database, &limits).await;
    let bearer = format!("Bearer {}", token("alice"));
    let from = |address| {
        [
            ("Authorization", bearer.as_str()),
            ("X-Forwarded-For", address),
        ]
    };
    let first = get(bridge.address(), "/stream", &from("192.0.2.1")).await;
    assert_eq!(first.as_ref().expect("an answer").status(), 200);
    assert_eq!(status(&bridge, &from("192.0.2.2")).await, 429);
    // With a proxy, the address that it adds counts, not what the client sent.
    let bridge = Bridge::start_with(&database, &[limits[0], PROXY]).await;
    let first = get(bridge.address(), "/stream", &from("192.0.2.1")).await;
    assert_eq!(first.as_ref().expect("an answer").status(), 200);
    assert_eq!(status(&bridge, &from("192.0.2.9, 192.0.2.1")).await, 429);
    assert_eq!(status(&bridge, &from("192.0.2.1, 192.0.2.9")).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_has_the_name_that_was_given_to_it() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--cookie-name=__Host-tidings"]).await;
    let cookie = |name: &str| format!("{name}={}", token("alice"));
    for (name, expected) in [
        ("__Host-tidings", 200),
        ("tidings_token", 401),
        ("__host-tidings", 401),
    ] {
        let cookie = cookie(name);
        let status = status(&bridge, &[("Cookie", &cookie)]).await;
        assert_eq!(status, expected, "{name}");
    }
}
