//! Fuzzing: tokens, cookies, ids and queries that are nearly valid, and pure junk.
//! `TIDINGS_FUZZ_CASES` sets the number of cases of each kind.

use std::{env, net::SocketAddr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use jsonwebtoken::Algorithm::{ES256, EdDSA, RS256};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::json;
use tidings::{
    auth::jwt::Tokens,
    config::{Cli, Command},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    PATIENCE,
    bridge::{Bridge, SECRET, token},
    database::Database,
    key_pair::{KeyPair, claims},
};

/// The number of cases of each kind.
fn cases() -> u32 {
    let given = env::var("TIDINGS_FUZZ_CASES").ok();
    given.map_or(256, |cases| cases.parse().expect("a number"))
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A mutation of a text.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index),
    Swap(Index, Index),
    Cut(Index),
    Repeat(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (at(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), select(b"=.-_+/ \t".to_vec())).prop_map(|(at, byte)| Change::Insert(at, vec![byte])),
        2 => at().prop_map(Change::Remove),
        1 => (at(), at()).prop_map(|(one, other)| Change::Swap(one, other)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), at()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn changed(text: &str, changes: &[Change]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match change {
            Change::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Change::Insert(at, more) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Change::Remove(at) => {
                bytes.remove(at.index(length));
            }
            Change::Swap(one, other) => bytes.swap(one.index(length), other.index(length)),
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let again = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(again);
            }
        }
    }
    bytes
}

/// Keys of every kind, with valid tokens signed by them.
fn tokens() -> (Tokens, Vec<String>) {
    let (rsa, p256, ed25519) = (KeyPair::rsa(), KeyPair::p256(), KeyPair::ed25519());
    let pem = [&rsa, &p256, &ed25519].map(KeyPair::pem).concat();
    let arguments = [
        "tidings",
        "serve",
        "--jwt-secret",
        SECRET,
        "--jwt-public-key",
        &pem,
    ];
    let Command::Serve(options) = <Cli as clap::Parser>::parse_from(arguments).command else {
        panic!("not serve")
    };
    let good = vec![
        token("alice"),
        token("bob"),
        rsa.token(RS256, ""),
        p256.token(ES256, "a"),
        p256.sign(ES256, "b", &claims("bob")),
        ed25519.token(EdDSA, ""),
    ];
    (options.jwt.tokens().expect("keys"), good)
}

/// The user of a token, if it is valid. Without a key set, verification never waits.
fn user(tokens: &Tokens, token: &str) -> Option<String> {
    let verified = tokens
        .verify(token)
        .now_or_never()
        .expect("an answer at once");
    verified.ok().map(|claimed| claimed.user.to_string())
}

fn decoded(token: &str) -> Option<Vec<Vec<u8>>> {
    let parts = token
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.decode(part).ok());
    parts.collect()
}

#[test]
fn a_token_that_was_changed_is_good_only_if_it_says_the_same() {
    let (tokens, good) = tokens();
    for token in &good {
        assert!(user(&tokens, token).is_some(), "{token}");
    }
    let strategy = (any::<Index>(), vec(change(), 1..4));
    let outcome = TestRunner::new(config()).run(&strategy, |(which, changes)| {
        let token = &good[which.index(good.len())];
        let changed = changed(token, &changes);
        let changed = String::from_utf8_lossy(&changed);
        if let Some(found) = user(&tokens, &changed) {
            prop_assert_eq!(decoded(&changed), decoded(token));
            prop_assert_eq!(Some(found), user(&tokens, token));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_token_that_is_made_of_parts_of_good_ones_is_good_only_if_it_is_one_of_them() {
    let (tokens, good) = tokens();
    let parts: Vec<Vec<&str>> = good
        .iter()
        .map(|token| token.split('.').collect())
        .collect();
    let which = || any::<Index>();
    let outcome = TestRunner::new(config()).run(&(which(), which(), which()), |(a, b, c)| {
        let part = |token: Index, part: usize| parts[token.index(parts.len())][part];
        let made = format!("{}.{}.{}", part(a, 0), part(b, 1), part(c, 2));
        prop_assert_eq!(user(&tokens, &made).is_some(), good.contains(&made));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn no_text_that_nobody_signed_is_a_good_token() {
    let (tokens, _) = tokens();
    let word = || {
        let words = [
            "alg", "none", "HS256", "ES256", "kid", "crit", "b64", "jwk", "zip", "sub", "exp",
            "alice",
        ];
        prop_oneof![select(words.to_vec()).prop_map(str::to_owned), ".{0,12}"]
    };
    let value = prop_oneof![
        word().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        vec(word(), 0..3).prop_map(serde_json::Value::from),
        (word(), word()).prop_map(|(name, value)| json!({ name: value })),
    ];
    let object = move || {
        let fields = vec((word(), value.clone()), 0..5);
        fields.prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect()))
    };
    let part = move || {
        prop_oneof![
            object().prop_map(|object| URL_SAFE_NO_PAD.encode(object.to_string())),
            vec(any::<u8>(), 0..40).prop_map(|bytes| URL_SAFE_NO_PAD.encode(bytes)),
            ".{0,20}",
        ]
    };
    let strategy = (vec(part(), 0..5), ".{0,40}");
    let outcome = TestRunner::new(config()).run(&strategy, |(parts, text)| {
        prop_assert_eq!(user(&tokens, &parts.join(".")), None);
        prop_assert_eq!(user(&tokens, &text), None);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// The bytes of a request, and whether it has a valid token.
#[derive(Clone, Debug)]
struct Request {
    bytes: Vec<u8>,
    is_signed: bool,
}

fn request(good: &str, event_id: &str) -> impl Strategy<Value = Request> + use<> {
    let junk = || vec(any::<u8>(), 0..40);
    let near = |text: &str| {
        let text = text.to_owned();
        vec(change(), 0..3).prop_map(move |changes| changed(&text, &changes))
    };
    let header = |name: &str, value: BoxedStrategy<Vec<u8>>| {
        let name = name.to_owned();
        value.prop_map(move |value| [name.as_bytes(), b": ", &value, b"\r\n"].concat())
    };
    let queries = [
        "user=alice",
        "format=json",
        "format=",
        "replay=5",
        "replay=-1",
        "replay=99999999999",
        "last_event_id=",
        "last_event_id=0-",
        "ticket=x",
        "%00",
        "%",
        "&&&",
        "=",
        "a[]=1",
        "+",
    ];
    let query = prop_oneof![
        vec(select(queries.to_vec()), 0..4).prop_map(|parts| parts.join("&").into_bytes()),
        near(&format!("format=json&replay=3&last_event_id={event_id}")),
        // Any characters that a request line allows.
        vec(0x21..0x7f_u8, 0..40),
        junk(),
    ];
    let cookies = [
        "tidings_token",
        "theme",
        "TIDINGS_TOKEN",
        "tidings_token ",
        "",
        "__Host-x",
    ];
    let cookie = (select(cookies.to_vec()), prop_oneof![near("x.y.z"), junk()]);
    let cookie = vec(cookie, 0..4).prop_map(|cookies| {
        let cookies: Vec<_> = cookies
            .iter()
            .map(|(name, value)| [name.as_bytes(), b"=", value].concat())
            .collect();
        cookies.join(&b"; "[..])
    });
    let schemes = ["Bearer", "bearer ", "Basic", "Bearer,", "", "\tBearer"];
    let bearer = (select(schemes.to_vec()), prop_oneof![near("x.y.z"), junk()]);
    let bearer = bearer.prop_map(|(scheme, token)| [scheme.as_bytes(), b" ", &token].concat());
    let signed = format!("Authorization: Bearer {good}\r\n").into_bytes();
    let headers = vec(
        prop_oneof![
            header("Last-Event-ID", prop_oneof![near(event_id), junk()].boxed()),
            header("Cookie", prop_oneof![cookie, junk()].boxed()),
            header("Authorization", prop_oneof![bearer, junk()].boxed()),
            header("Accept", junk().boxed()),
        ],
        0..4,
    );
    (query, headers, any::<bool>()).prop_map(move |(query, headers, is_signed)| {
        let mut bytes = [b"GET /stream?", &query[..], b" HTTP/1.1\r\nHost: x\r\n"].concat();
        bytes.extend(headers.concat());
        if is_signed {
            bytes.extend(&signed);
        }
        bytes.extend(b"Connection: close\r\n\r\n");
        Request { bytes, is_signed }
    })
}

/// The status of the response to these bytes.
async fn answer(address: SocketAddr, request: &[u8]) -> u16 {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(request).await.expect("a reader");
        let mut received = Vec::new();
        while received.len() < 12 && stream.read_buf(&mut received).await.is_ok_and(|n| n > 0) {}
        let head = String::from_utf8_lossy(&received).into_owned();
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {head:?}"))
    };
    timeout(PATIENCE, exchange).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_too_strange_for_the_bridge_and_none_opens_a_stream_unsigned() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let event_id = source.last_event_id().to_owned();
    let strategy = request(&token("alice"), &event_id);
    let mut runner = TestRunner::new(config());
    let mut opened = 0;
    for _ in 0..cases() {
        let tree = strategy.new_tree(&mut runner).expect("a request");
        let request = tree.current();
        let shown = || request.bytes.escape_ascii().to_string();
        let status = answer(bridge.address(), &request.bytes).await;
        assert!(
            status == 200 || (400..500).contains(&status),
            "{status}: {}",
            shown()
        );
        assert!(status != 200 || request.is_signed, "{}", shown());
        opened += u32::from(status == 200);
    }
    assert!(opened > 0, "no stream was opened at all");
    database
        .execute("select send_notification('alice', 'still here')")
        .await;
    assert_eq!(source.next_event().await.data, "still here");
}
