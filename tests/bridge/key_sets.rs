//! The keys that an identity provider publishes: what happens to users when its server is slow,
//! broken, hostile or down, or has new keys.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use jsonwebtoken::{
    Algorithm::{ES256, HS256, PS256, RS256},
    EncodingKey, Header, encode,
};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    PATIENCE,
    bridge::{Bridge, SECRET, final_status, options_without_secret, serve_options, status, token},
    database::Database,
    key_pair::{KeyPair, claims},
    key_server::{Answer, KeyServer},
    process::{Served, refusal},
};

/// Polls until the bridge responds to this token with this status.
async fn until_status(bridge: &Bridge, token: &str, expected: u16) {
    let asking = async { while status(bridge.address(), token).await != expected {} };
    let outcome = timeout(PATIENCE, asking).await;
    outcome.unwrap_or_else(|_| panic!("never {expected}"));
}

async fn start(database: &Database, server: &KeyServer) -> Bridge {
    let url = server.url();
    Bridge::start_as(&options_without_secret(database, &["--jwks-url", &url])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_is_down_at_start_keeps_nobody_else_out_and_is_heard_when_it_comes() {
    let database = Database::migrated().await;
    let pair = KeyPair::p256();
    let server = KeyServer::start(Answer::Closes).await;
    let url = server.url();
    let bridge = Bridge::start_as(&serve_options(&database, &["--jwks-url", &url])).await;
    server.until_asked(1).await;
    let theirs = pair.token(ES256, "a");
    assert_eq!(status(bridge.address(), &theirs).await, 503);
    bridge.until_ready_is(200).await;
    assert_eq!(status(bridge.address(), &token("alice")).await, 200);
    // A token that no key of the set can have signed is rejected without fetching the set.
    let forged = encode(
        &Header::new(HS256),
        &claims("alice"),
        &EncodingKey::from_secret(b"another secret"),
    );
    assert_eq!(
        status(bridge.address(), &forged.expect("a token")).await,
        401
    );
    server.answer(Answer::Keys(vec![pair.jwk("a")]));
    until_status(&bridge, &theirs, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_that_cannot_be_had_is_given_up_in_time_and_the_old_one_stays_good() {
    let database = Database::migrated().await;
    let (old, new) = (KeyPair::p256(), KeyPair::p256());
    let elsewhere = KeyServer::start(Answer::Keys(vec![new.jwk("new")])).await;
    let redirect = format!(
        "302 Found\r\nLocation: {}\r\nContent-Length: 0",
        elsewhere.url()
    );
    let set = json!({ "keys": [new.jwk("new")] }).to_string();
    let unsure = format!(
        "500 Internal Server Error\r\nContent-Length: {}\r\n\r\n{set}",
        set.len()
    );
    let many = vec![new.jwk("new"); 101];
    let symmetric = json!({ "kty": "oct", "kid": "new", "k": "c2VjcmV0" });
    let faults = [
        Answer::Silence,
        Answer::Endless,
        Answer::Closes,
        Answer::status("204 No Content"),
        // The response contains the keys, but something else is wrong.
        Answer::Other(unsure),
        Answer::Other(redirect),
        Answer::body("<html>maintenance</html>"),
        Answer::body(r#"{"keys": 7}"#),
        Answer::Other("200 OK\r\nContent-Length: 4000\r\n\r\n{\"keys\":[".to_owned()),
        // A set without keys would mean a provider without users.
        Answer::Keys(vec![]),
        Answer::Keys(many),
        Answer::Keys(vec![symmetric]),
    ];
    let rounds = faults.into_iter().map(async |fault| {
        let server = KeyServer::start(Answer::Keys(vec![old.jwk("old")])).await;
        let bridge = start(&database, &server).await;
        let known = old.token(ES256, "old");
        assert_eq!(status(bridge.address(), &known).await, 200, "{fault:?}");
        server.answer(fault.clone());
        // The bridge asks again; until the server responds, it can't decide about the token.
        let unknown = new.token(ES256, "new");
        assert_eq!(status(bridge.address(), &unknown).await, 503, "{fault:?}");
        assert!(server.asked().len() >= 2, "{fault:?}");
        assert_eq!(status(bridge.address(), &known).await, 200, "{fault:?}");
        assert!(server.written() < 16 << 20, "{} bytes", server.written());
        server.answer(Answer::Keys(vec![new.jwk("new")]));
        until_status(&bridge, &unknown, 200).await;
        server.written()
    });
    let written = join_all(rounds).await;
    assert!(written.iter().any(|&bytes| bytes > 1 << 20), "{written:?}");
    assert_eq!(elsewhere.asked(), [""; 0], "a redirect is not followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_keys_are_fetched_once_for_all_who_need_them_and_replace_the_old_ones() {
    let database = Database::migrated().await;
    let (old, new, forger) = (KeyPair::p256(), KeyPair::p256(), KeyPair::p256());
    let server = KeyServer::start(Answer::Keys(vec![old.jwk("old")])).await;
    let bridge = start(&database, &server).await;
    let (of_old, of_new) = (old.token(ES256, "old"), new.token(ES256, "new"));
    assert_eq!(status(bridge.address(), &of_old).await, 200);
    assert_eq!(server.asked().len(), 1);
    server.answer(Answer::Keys(vec![new.jwk("new")]));
    let together = (0..50).map(|_| status(bridge.address(), &of_new));
    assert_eq!(join_all(together).await, [200; 50]);
    assert_eq!(server.asked().len(), 2);
    // A flood of unknown key names costs the provider at most one request in ten seconds. The
    // tokens get a 503 before that, because requests have a deadline.
    let began = Instant::now();
    let forged: Vec<String> = (0..50)
        .map(|n| forger.token(ES256, &format!("forged {n}")))
        .collect();
    let flood = join_all(forged.iter().map(|token| status(bridge.address(), token)));
    let others = async {
        assert_eq!(status(bridge.address(), &of_new).await, 200);
        assert_eq!(server.asked().len(), 2, "{:?}", began.elapsed());
    };
    let (answers, ()) = tokio::join!(flood, others);
    assert_eq!(answers, [503; 50]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    // The set is replaced as a whole, at the next fetch that is due.
    until_status(&bridge, &of_old, 401).await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(5), "{took:?}");
    assert!(server.asked().len() <= 4, "{:?}", server.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_set_only_public_keys_for_signatures_are_taken_each_for_its_own_algorithm() {
    let database = Database::migrated().await;
    let (pair, rsa, other) = (KeyPair::p256(), KeyPair::rsa(), KeyPair::p256());
    let with = |pair: &KeyPair, kid: &str, more: Value| {
        let mut jwk = pair.jwk(kid);
        for (name, value) in more.as_object().expect("an object") {
            jwk[name] = value.clone();
        }
        jwk
    };
    let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I";
    let short = "w".repeat(171);
    let server = KeyServer::start(Answer::Keys(vec![
        with(&pair, "sig", json!({ "use": "sig", "alg": "ES256" })),
        with(&pair, "verify", json!({ "key_ops": ["verify"] })),
        with(&pair, "enc", json!({ "use": "enc" })),
        with(&pair, "sign", json!({ "key_ops": ["sign"] })),
        with(&pair, "strange", json!({ "alg": "ES999" })),
        with(&pair, "of another kind", json!({ "alg": "RS256" })),
        with(&pair, "no curve", json!({ "crv": "P-521" })),
        with(&pair, "no point", json!({ "x": "AAAA" })),
        with(&rsa, "pss", json!({ "alg": "PS256" })),
        json!({ "kty": "oct", "kid": "secret", "alg": "HS256", "k": secret }),
        json!({ "kty": "RSA", "kid": "short", "n": short, "e": "AQAB" }),
        json!({ "kty": "martian", "kid": "x" }),
        json!({ "kid": 7 }),
        json!("nonsense"),
        Value::Null,
    ]))
    .await;
    let bridge = start(&database, &server).await;
    let mut header = Header::new(HS256);
    header.kid = Some("secret".to_owned());
    let symmetric = EncodingKey::from_base64_secret(&format!("{secret}=")).expect("a secret");
    let symmetric = encode(&header, &claims("alice"), &symmetric).expect("a token");
    let cases = [
        (pair.token(ES256, "sig"), 200),
        (pair.token(ES256, "verify"), 200),
        (pair.token(ES256, ""), 200),
        (pair.token(ES256, "enc"), 401),
        (pair.token(ES256, "sign"), 401),
        (pair.token(ES256, "strange"), 401),
        (pair.token(ES256, "of another kind"), 401),
        (pair.token(ES256, "no curve"), 401),
        (pair.token(ES256, "no point"), 401),
        // A valid signature, but by another key than the token names.
        (pair.token(ES256, "pss"), 401),
        (other.token(ES256, "sig"), 401),
        (other.token(ES256, ""), 401),
        (rsa.token(PS256, "pss"), 200),
        (rsa.token(RS256, "pss"), 401),
        (rsa.token(RS256, ""), 401),
        (symmetric, 401),
    ];
    let answers = join_all(cases.iter().map(async |(token, expected)| {
        let answer = final_status(bridge.address(), token).await;
        assert_eq!(answer, *expected, "{token}");
    }));
    answers.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_https_the_systems_roots_decide_and_no_secret_of_the_url_is_logged() {
    let database = Database::migrated().await;
    let pair = KeyPair::p256();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let strange = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (trusted, other) = (folder.join("trusted.pem"), folder.join("other.pem"));
    fs::write(&trusted, made.cert.pem()).expect("a file");
    fs::write(&other, strange.cert.pem()).expect("a file");
    let key = made.signing_key.serialize_der().try_into().expect("a key");
    let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| {
            config
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
        })
        .expect("a server's TLS");
    let server = KeyServer::start_tls(Answer::Keys(vec![pair.jwk("a")]), tls).await;
    let url = format!(
        "https://user:hunter2@localhost:{}/keys.json?key=hunter2",
        server.port()
    );
    let arguments = ["--jwks-url", url.as_str()];
    let serve = async |roots: &Path| {
        let roots = [("SSL_CERT_FILE", roots.to_str().expect("text"))];
        Served::start_in(&database, &arguments, &roots).await
    };
    let deceived = serve(&other).await;
    assert_eq!(
        status(deceived.address(), &pair.token(ES256, "a")).await,
        503
    );
    assert_eq!(server.asked(), [""; 0], "nothing is asked of a stranger");
    let mut served = serve(&trusted).await;
    assert_eq!(status(served.address(), &pair.token(ES256, "a")).await, 200);
    assert_eq!(server.asked(), ["GET /keys.json?key=hunter2 HTTP/1.1"]);
    server.answer(Answer::Closes);
    assert_eq!(status(served.address(), &pair.token(ES256, "b")).await, 503);
    let line = served
        .until_logged("WARN", "can't fetch the key set")
        .await
        .to_string();
    assert!(
        line.contains("localhost") && line.contains("closed"),
        "{line}"
    );
    assert!(
        !line.contains("hunter2") && !line.contains(SECRET),
        "{line}"
    );
    server.answer(Answer::Keys(vec![pair.jwk("b")]));
    let line = served
        .until_logged("INFO", "fetched the key set")
        .await
        .to_string();
    assert!(!line.contains("hunter2"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_a_name_for_its_key_is_tried_with_a_bounded_number_of_them() {
    let database = Database::migrated().await;
    let pairs: Vec<KeyPair> = (0..17).map(|_| KeyPair::p256()).collect();
    let keys = pairs.iter().enumerate();
    let keys = keys.map(|(n, pair)| pair.jwk(&n.to_string())).collect();
    let server = KeyServer::start(Answer::Keys(keys)).await;
    let bridge = start(&database, &server).await;
    for (n, pair) in pairs.iter().enumerate() {
        let named = pair.token(ES256, &n.to_string());
        assert_eq!(status(bridge.address(), &named).await, 200, "{n}");
        let expected = if n < 16 { 200 } else { 401 };
        let unnamed = pair.token(ES256, "");
        assert_eq!(status(bridge.address(), &unnamed).await, expected, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_whose_tokens_may_be_meant_for_others_is_warned_of() {
    let database = Database::empty().await;
    let server = KeyServer::start(Answer::Closes).await;
    let url = server.url();
    // It refuses to start for another reason, so its whole output can be read.
    let arguments = ["--migrate=never", "--jwks-url", &url];
    let said = refusal(&database, &arguments).await;
    assert!(said.contains("TIDINGS_JWT_AUDIENCE is not"), "{said}");
    let arguments = [&arguments[..], &["--jwt-audience=tidings"]].concat();
    let said = refusal(&database, &arguments).await;
    assert!(!said.contains("TIDINGS_JWT_AUDIENCE"), "{said}");
}
