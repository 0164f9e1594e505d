//! Authentication: a wrong, expired, unsigned or missing token gets a 401 and nothing of the
//! stream.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use tidings::{app::Parts, config::ConfigError};

use crate::support::{
    bridge::{Bridge, SECRET, serve_options, token},
    database::Database,
    event_source::{EventSource, get},
    tls::{self, authority::Authority, http2::Http2},
    wire::Wire,
};

fn sign(algorithm: Algorithm, claims: &Value, secret: &str) -> String {
    encode(
        &Header::new(algorithm),
        claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .expect("a token")
}

fn claims() -> Value {
    json!({ "sub": "alice", "exp": get_current_timestamp() + 600 })
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn unsigned() -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.",
        part(&json!({ "alg": "none", "typ": "JWT" })),
        part(&claims())
    )
}

/// All tabs of a browser share the cookie, which may be another user's than the page's.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_another_user_gets_a_401_and_nothing_of_this_user() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;
    let cookie = format!("tidings_token={}", token("alice"));
    let headers = [("Cookie", cookie.as_str()), ("Accept", "text/event-stream")];
    for (query, status) in [
        ("expected_user=bob", 401),
        ("expected_user=", 401),
        ("expected_user=Alice", 401),
        ("expected_user=alice&expected_user=bob", 401),
        ("expected_user=bob&errors=status", 401),
        ("expected_user=bob&expected_user=alice", 200),
        ("expected_user=%61lice", 200),
    ] {
        let response = get(bridge.address(), &format!("/stream?{query}"), &headers)
            .await
            .expect("an answer");
        assert_eq!(response.status(), status, "{query}");
        if status == 401 {
            let body = response.text().await;
            assert!(body.contains("expected_user"), "{query}: {body}");
            assert!(
                !body.contains("alice") && !body.contains("a secret"),
                "{body}"
            );
        }
    }
    let metrics = bridge.admin("/metrics").await.text().await;
    let rejected = "tidings_refused_total{reason=\"identity\"} 5\n";
    assert!(metrics.contains(rejected), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_gets_a_401_that_says_what_to_do_and_nothing_else() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select send_notification('alice', 'a secret')")
        .await;
    let now = get_current_timestamp();
    let hs256 = |claims: Value| sign(Algorithm::HS256, &claims, SECRET);
    let mut tampered = token("alice");
    // Not the very last character: only some of its bits count.
    let at = tampered.len() - 5..tampered.len() - 4;
    let other = if &tampered[at.clone()] == "A" {
        "B"
    } else {
        "A"
    };
    tampered.replace_range(at, other);
    let mut without_exp = claims();
    without_exp
        .as_object_mut()
        .expect("an object")
        .remove("exp");
    let mut without_sub = claims();
    without_sub
        .as_object_mut()
        .expect("an object")
        .remove("sub");
    let bad = [
        ("unsigned", unsigned()),
        ("unsigned, cut", unsigned().trim_end_matches('.').to_owned()),
        (
            "another secret",
            sign(
                Algorithm::HS256,
                &claims(),
                "another secret of 32 bytes or more",
            ),
        ),
        (
            "another algorithm",
            sign(Algorithm::HS512, &claims(), SECRET),
        ),
        ("tampered with", tampered),
        ("expired", hs256(with("exp", json!(now - 60)))),
        ("not yet valid", hs256(with("nbf", json!(now + 600)))),
        (
            "exp as text",
            hs256(with("exp", json!((now + 600).to_string()))),
        ),
        ("without exp", hs256(without_exp)),
        ("without sub", hs256(without_sub)),
        ("sub as number", hs256(with("sub", json!(7)))),
        ("empty sub", hs256(with("sub", json!("")))),
        ("long sub", hs256(with("sub", json!("x".repeat(256))))),
        ("NUL in sub", hs256(with("sub", json!("a\0b")))),
        ("nonsense", "nonsense".to_owned()),
        ("empty", String::new()),
    ];
    for (name, token) in bad {
        let bearer = format!("Bearer {token}");
        let cookie = format!("tidings_token={token}");
        for header in [
            ("Authorization", bearer.as_str()),
            ("Cookie", cookie.as_str()),
        ] {
            let response = get(bridge.address(), "/stream", &[header])
                .await
                .expect("an answer");
            assert_eq!(response.status(), 401, "{name}");
            assert_eq!(
                response.header("content-type"),
                Some("application/problem+json"),
                "{name}"
            );
            assert_eq!(
                response.header("www-authenticate"),
                Some("Bearer"),
                "{name}"
            );
            let body = response.text().await;
            let problem: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!(problem["status"], 401, "{name}");
            assert!(!body.contains("a secret"), "{name}: {body}");
        }
    }
    let response = get(bridge.address(), "/stream", &[])
        .await
        .expect("an answer");
    assert_eq!(response.status(), 401);
    assert!(response.text().await.contains("Authorization: Bearer"));
    assert_eq!(
        database
            .ids("select id from notifications where sent")
            .await,
        [0; 0]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_users_stream_from_the_header_or_the_cookie() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let token = token("alice");
    let headers = [
        ("Authorization", format!("Bearer {token}")),
        ("Authorization", format!("bearer  {token}")),
        (
            "Cookie",
            format!("theme=dark; tidings_token={token}; lang=en"),
        ),
    ];
    for (name, value) in &headers {
        let mut source = EventSource::open(bridge.address(), "/stream", &[(name, value)]).await;
        assert_eq!(source.next_event().await.name, "tidings.caught-up");
        database
            .execute("select send_notification('bob', 'not for alice')")
            .await;
        database
            .execute("select send_notification('alice', 'for alice')")
            .await;
        assert_eq!(source.next_event().await.data, "for alice");
        database
            .until("select bool_and(sent) from notifications where user_id = 'alice'")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_must_agree_and_a_bad_one_never_falls_back_to_another() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let status = async |headers: &[(&str, &str)]| {
        get(bridge.address(), "/stream", headers)
            .await
            .expect("an answer")
            .status()
    };
    let alice = format!("Bearer {}", token("alice"));
    let alices = format!("tidings_token={}", token("alice"));
    let bobs = format!("tidings_token={}", token("bob"));
    let both = format!("{alices}; {bobs}");
    assert_eq!(
        status(&[("Authorization", &alice), ("Cookie", &alices)]).await,
        200
    );
    assert_eq!(
        status(&[("Authorization", &alice), ("Cookie", &bobs)]).await,
        401
    );
    assert_eq!(
        status(&[("Authorization", &alice), ("Cookie", "tidings_token=x")]).await,
        401
    );
    assert_eq!(
        status(&[("Authorization", "Bearer x"), ("Cookie", &alices)]).await,
        401
    );
    assert_eq!(status(&[("Cookie", &both)]).await, 401);
    // Each one costs a signature check, so at most four are accepted.
    let many = |count| vec![alices.as_str(); count].join("; ");
    assert_eq!(status(&[("Cookie", &many(4))]).await, 200);
    assert_eq!(status(&[("Cookie", &many(5))]).await, 401);
    // An unrelated scheme, for example a proxy's password.
    assert_eq!(
        status(&[("Authorization", "Basic eDp5"), ("Cookie", &alices)]).await,
        200
    );
    assert_eq!(status(&[("Authorization", "Basic eDp5")]).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_serve_refuses_to_start() {
    let database = Database::empty().await;
    let mut options = serve_options(&database, &[]);
    options.jwt.secrets.jwt_secret = None;
    let error = Parts::of(&options).err().expect("a refusal");
    assert!(matches!(error, ConfigError::NoAuthentication));
    assert!(error.to_string().contains("TIDINGS_JWT_SECRET"), "{error}");
}

/// Users whose names have a meaning in SQL, SSE or HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_only_a_name() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let client = database.connect().await;
    for user in [
        "'; drop table notifications; --",
        "alice' or '1'='1",
        "%",
        "alice%",
        "$1",
        "\\",
        "alice\r\ndata: forged\r\n\r\n",
        "\u{202e}alice\u{0}".trim_end_matches('\u{0}'),
        " alice ",
        "{\"sub\":\"alice\"}",
    ] {
        let mut source = bridge.connect_live(user).await;
        for (to, text) in [("alice", "not for them"), (user, "for them")] {
            let send = "select send_notification($1, $2)";
            client.query_one(send, &[&to, &text]).await.expect(user);
        }
        assert_eq!(source.next_event().await.data, "for them", "{user}");
    }
    let alices = "select id from notifications where user_id = 'alice' and sent";
    assert_eq!(database.ids(alices).await, [0; 0]);
}

/// Header lines of a request, as bytes.
type Lines<'a> = &'a [(&'a str, &'a [u8])];

/// The status of the response to a request with these lines, over plain HTTP/1.1.
async fn status_of(bridge: &Bridge, path: &str, lines: Lines<'_>) -> u16 {
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: tidings\r\n").into_bytes();
    for (name, value) in lines {
        request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    Wire::plain(bridge.address(), request)
        .await
        .head()
        .await
        .status
}

/// The same over HTTP/2.
async fn status_over_http2(connection: &Http2, path: &str, lines: Lines<'_>) -> u16 {
    let request = http::Request::get(format!("https://localhost{path}"));
    let request = lines.iter().fold(request, |request, (name, value)| {
        let value = http::HeaderValue::from_bytes(value).expect("a value");
        request.header(*name, value)
    });
    let (answer, _request) = connection.ask(request).await;
    answer.expect("an answer").status().as_u16()
}

/// Other applications' cookies and other authorization schemes may contain any bytes.
#[tokio::test(flavor = "multi_thread")]
async fn other_cookies_and_authorization_schemes_are_ignored() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let setting = "--cookie-name=__Host-t";
    let bridge = Bridge::start_with(&database, &[setting]).await;
    let secure = tls::start(&database, &authority, &[setting]).await;
    let connection = Http2::connect(secure.address(), &authority).await;
    let ask = async |path: &str, lines: Lines<'_>| {
        let status = status_of(&bridge, path, lines).await;
        let other = status_over_http2(&connection, path, lines).await;
        assert_eq!(status, other, "{path} {lines:?}");
        status
    };
    let alice = token("alice");
    let bearer = format!("Bearer {alice}");
    let bearer = ("Authorization", bearer.as_bytes());
    let ticket = database.connect().await;
    let ticket = ticket.query_one("select create_stream_ticket('alice')", &[]);
    let ticket: String = ticket.await.expect("a ticket").get(0);
    let ticket = format!("/stream?ticket={ticket}");
    let ours = format!("__Host-t={alice}");
    let ours = ("Cookie", ours.as_bytes());

    let foreign: [Lines<'_>; 8] = [
        &[("Cookie", b"theme=\xff\xfe")],
        &[("Cookie", b"\xff")],
        &[("Cookie", b"a=%ff; =; ;;a; b=\xc3")],
        &[("Cookie", b"__Host-T=x; __Host-t2=x; __Host-t")],
        &[("Cookie", b"a=1"), ("Cookie", b"\xff=\xff")],
        &[("Authorization", b"Basic \xff\xfe")],
        &[
            ("Authorization", b"Negotiate"),
            ("Authorization", b"\xff Bearer x"),
        ],
        &[(
            "Authorization",
            b"Digest username=\"Bearer x\", uri=\"\xff\"",
        )],
    ];
    for foreign in foreign {
        assert_eq!(ask("/stream", foreign).await, 401, "{foreign:?}");
        for (path, own) in [
            ("/stream", &[bearer][..]),
            ("/stream", &[ours]),
            ("/stream", &[bearer, ours]),
            (&ticket, &[]),
        ] {
            let before = [foreign, own].concat();
            assert_eq!(ask(path, &before).await, 200, "{path} {before:?}");
            let after = [own, foreign].concat();
            assert_eq!(ask(path, &after).await, 200, "{path} {after:?}");
        }
    }
    // In one header with other cookies, and quoted.
    for cookie in [
        &[b"theme=\xff; __Host-t=", alice.as_bytes(), b"; lang=\xfe"].concat(),
        &[b"a=1;__Host-t=", alice.as_bytes()].concat(),
        &[b"a=1;\t __Host-t=\"", alice.as_bytes(), b"\" ; b=2"].concat(),
    ] {
        assert_eq!(
            ask("/stream", &[("Cookie", cookie)]).await,
            200,
            "{cookie:?}"
        );
    }
    // Parameters that are not configured may be repeated.
    let path = "/stream?user=bob&user=carol&x=%ff&%";
    assert_eq!(ask(path, &[bearer]).await, 200);
    assert_eq!(ask(&format!("{ticket}&ticket=x"), &[]).await, 401);
    assert_eq!(ask(&format!("{ticket}&ticket="), &[bearer]).await, 401);
}

/// A subdomain can set such cookies for the whole domain: browsers protect only the exact name.
#[tokio::test(flavor = "multi_thread")]
async fn cookie_names_are_compared_byte_for_byte() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let setting = "--cookie-name=__Host-t";
    let bridge = Bridge::start_with(&database, &[setting]).await;
    let secure = tls::start(&database, &authority, &[setting]).await;
    let connection = Http2::connect(secure.address(), &authority).await;
    let (alice, mallory) = (token("alice"), token("mallory"));
    let ours = format!("__Host-t={alice}");
    for name in [
        "%5F%5FHost-t",
        "__Host%2Dt",
        "\u{a0}__Host-t",
        "\u{2003}__Host-t",
        "\u{3000}__Host-t",
        "\u{feff}__Host-t",
        "__Host-t\u{a0}",
        "__Host-t ",
        "__host-t",
        "\"__Host-t\"",
        "=__Host-t",
    ] {
        let lookalike = format!("{name}={mallory}");
        let lines = [("Cookie", lookalike.as_bytes())];
        assert_eq!(status_of(&bridge, "/stream", &lines).await, 401, "{name:?}");
        let status = status_over_http2(&connection, "/stream", &lines).await;
        assert_eq!(status, 401, "{name:?}");
        // It doesn't interfere with the real cookie either.
        let both = format!("{lookalike}; {ours}");
        let lines = [("Cookie", both.as_bytes())];
        assert_eq!(status_of(&bridge, "/stream", &lines).await, 200, "{name:?}");
        let lines = [
            ("Cookie", lookalike.as_bytes()),
            ("Cookie", ours.as_bytes()),
        ];
        let status = status_over_http2(&connection, "/stream", &lines).await;
        assert_eq!(status, 200, "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_credential_never_falls_back_to_another_however_it_is_written() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let (alice, bob) = (token("alice"), token("bob"));
    let good = format!("Bearer {alice}");
    let good = ("Authorization", good.as_bytes());
    let bobs = format!("tidings_token={bob}");
    let twice = format!("tidings_token={alice}; tidings_token={bob}");
    for bad in [
        ("Authorization", &b"Bearer"[..]),
        ("Authorization", b"bearer\t"),
        ("Authorization", b"Bearer\tx"),
        ("Authorization", b"Bearer \xff"),
        ("Authorization", b"Bearer x, Basic eDp5"),
        ("Cookie", b"tidings_token="),
        ("Cookie", b"a=\xff; tidings_token=\"\"; b=1"),
        ("Cookie", b"tidings_token=\xff"),
        ("Cookie", bobs.as_bytes()),
        ("Cookie", twice.as_bytes()),
    ] {
        for lines in [&[bad][..], &[bad, good], &[good, bad]] {
            // Another user's cookie is valid on its own.
            let expected = if lines == [("Cookie", bobs.as_bytes())] {
                200
            } else {
                401
            };
            let status = status_of(&bridge, "/stream", lines).await;
            assert_eq!(status, expected, "{lines:?}");
        }
    }
    for value in [
        format!("BEARER {alice}"),
        format!("Bearer\t{alice}\t"),
        format!("  Bearer   {alice}  "),
    ] {
        let lines = [("Authorization", value.as_bytes())];
        assert_eq!(
            status_of(&bridge, "/stream", &lines).await,
            200,
            "{value:?}"
        );
    }
}
