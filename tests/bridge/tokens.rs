//! Tokens signed by identity providers: which are accepted, and which attacks get a 401 and nothing
//! else.

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp, jwk::Jwk};
use serde_json::{Value, json};

use crate::support::{
    bridge::{Bridge, final_status, options_without_secret, status},
    database::Database,
    event_source::{EventSource, get},
    key_pair::{KeyPair, claims},
    key_server::{Answer, KeyServer},
    until,
};

use Algorithm::{
    ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
};

const ALL: [Algorithm; 12] = [
    HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA,
];

/// Long enough for each of the algorithms.
const LONG_SECRET: &str = "a secret of the tests that is long enough for HS512, 64 bytes or more";

fn with_secret(algorithm: Algorithm, claims: &Value, secret: &[u8]) -> String {
    let header = Header::new(algorithm);
    encode(&header, claims, &EncodingKey::from_secret(secret)).expect("a token")
}

/// A token made of exactly these parts.
fn raw(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signature = URL_SAFE_NO_PAD.encode(signature);
    format!("{}.{}.{signature}", part(header), part(claims))
}

/// One key of each kind, which the tests configure in every possible way.
struct Keys {
    rsa: KeyPair,
    p256: KeyPair,
    p384: KeyPair,
    ed25519: KeyPair,
}

impl Keys {
    fn new() -> Self {
        Self {
            rsa: KeyPair::rsa(),
            p256: KeyPair::p256(),
            p384: KeyPair::p384(),
            ed25519: KeyPair::ed25519(),
        }
    }

    fn pem(&self) -> String {
        [&self.rsa, &self.p256, &self.p384, &self.ed25519]
            .map(KeyPair::pem)
            .join("\n")
    }

    fn set(&self) -> Answer {
        Answer::Keys(vec![
            self.rsa.jwk("rsa"),
            self.p256.jwk("p256"),
            self.p384.jwk("p384"),
            self.ed25519.jwk("ed25519"),
        ])
    }

    fn token(&self, algorithm: Algorithm, kid: &str) -> String {
        match algorithm {
            HS256 | HS384 | HS512 => {
                with_secret(algorithm, &claims("alice"), LONG_SECRET.as_bytes())
            }
            ES256 => self.p256.token(algorithm, kid),
            ES384 => self.p384.token(algorithm, kid),
            EdDSA => self.ed25519.token(algorithm, kid),
            _ => self.rsa.token(algorithm, kid),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_is_taken_when_it_is_configured_and_refused_when_not() {
    let database = Database::migrated().await;
    let keys = Keys::new();
    let server = KeyServer::start(keys.set()).await;
    let (pem, url) = (keys.pem(), server.url());
    let by_pem = ["--jwt-secret", LONG_SECRET, "--jwt-public-key", &pem];
    let by_set = ["--jwt-secret", LONG_SECRET, "--jwks-url", &url];
    let usual = [HS256, RS256, ES256, ES384, EdDSA];
    let few = [HS512, PS384, ES256, ES384, EdDSA];
    for given in [by_pem, by_set] {
        for taken in [&usual[..], &few, &ALL] {
            let names: Vec<String> = taken.iter().map(|one| format!("{one:?}")).collect();
            let algorithms = format!("--jwt-algorithms={}", names.join(","));
            let mut arguments = given.to_vec();
            // The default algorithms need no setting.
            if taken != usual {
                arguments.push(&algorithms);
            }
            let bridge = Bridge::start_as(&options_without_secret(&database, &arguments)).await;
            for algorithm in ALL {
                let kid = match algorithm {
                    ES256 => "p256",
                    ES384 => "p384",
                    EdDSA => "ed25519",
                    _ => "rsa",
                };
                let expected = if taken.contains(&algorithm) { 200 } else { 401 };
                for kid in ["", kid] {
                    let token = keys.token(algorithm, kid);
                    let status = status(bridge.address(), &token).await;
                    assert_eq!(status, expected, "{algorithm:?} {kid:?} {arguments:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_is_no_secret_and_no_key_serves_another_algorithm() {
    let database = Database::migrated().await;
    let keys = Keys::new();
    let pem = keys.pem();
    let arguments = ["--jwt-secret", LONG_SECRET, "--jwt-public-key", &pem];
    let all: Vec<String> = ALL.iter().map(|one| format!("{one:?}")).collect();
    let all = format!("--jwt-algorithms={}", all.join(","));
    let usual = Bridge::start_as(&options_without_secret(&database, &arguments)).await;
    let arguments = [&arguments[..], &[all.as_str()]].concat();
    let wide = Bridge::start_as(&options_without_secret(&database, &arguments)).await;
    let alice = claims("alice");
    let mut forged = vec![
        // No signature at all.
        raw(&json!({ "alg": "none" }), &alice, b""),
        raw(&json!({ "alg": "None", "typ": "JWT" }), &alice, b""),
        raw(&json!({ "alg": "" }), &alice, b""),
        raw(&json!({ "typ": "JWT" }), &alice, b""),
        raw(&json!({ "alg": ["HS256"] }), &alice, b""),
        raw(&json!({ "alg": "HS256" }), &alice, b""),
        // A careless ECDSA implementation accepts all zeros as a signature.
        raw(&json!({ "alg": "ES256" }), &alice, &[0; 64]),
        raw(&json!({ "alg": "ES384" }), &alice, &[0; 96]),
        raw(&json!({ "alg": "EdDSA" }), &alice, &[0; 64]),
        raw(&json!({ "alg": "RS256" }), &alice, &[0; 256]),
    ];
    for pair in [&keys.rsa, &keys.p256, &keys.p384, &keys.ed25519] {
        let pem = pair.pem();
        let lines: String = pem.lines().filter(|line| !line.starts_with("--")).collect();
        let der = STANDARD.decode(lines).expect("DER");
        let whole = keys.pem();
        for secret in [
            pem.as_bytes(),
            pem.trim().as_bytes(),
            &der,
            whole.as_bytes(),
        ] {
            for algorithm in [HS256, HS384, HS512] {
                forged.push(with_secret(algorithm, &alice, secret));
            }
        }
    }
    // A valid signature, labeled with another algorithm.
    for (algorithm, named) in [
        (RS256, "PS256"),
        (PS256, "RS256"),
        (RS256, "HS256"),
        (ES256, "ES384"),
    ] {
        let good = keys.token(algorithm, "");
        let (_, rest) = good.split_once('.').expect("three parts");
        let header = URL_SAFE_NO_PAD.encode(json!({ "alg": named, "typ": "JWT" }).to_string());
        forged.push(format!("{header}.{rest}"));
    }
    for bridge in [&usual, &wide] {
        for token in &forged {
            assert_eq!(status(bridge.address(), token).await, 401, "{token}");
        }
        assert_eq!(status(bridge.address(), &keys.token(RS256, "")).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_says_of_its_own_key_is_not_believed() {
    let database = Database::migrated().await;
    let (trusted, forger) = (KeyPair::p256(), KeyPair::p256());
    let server = KeyServer::start(Answer::Keys(vec![trusted.jwk("good")])).await;
    let forgers = KeyServer::start(Answer::Keys(vec![forger.jwk("good")])).await;
    let url = server.url();
    let options = options_without_secret(&database, &["--jwks-url", &url]);
    let bridge = Bridge::start_as(&options).await;
    let bring = |change: &dyn Fn(&mut Header)| {
        let mut header = Header::new(ES256);
        header.kid = Some("good".to_owned());
        change(&mut header);
        forger.sign_with(&header, &claims("alice"))
    };
    let own: Option<Jwk> = serde_json::from_value(forger.jwk("good")).expect("a JWK");
    for token in [
        bring(&|_| {}),
        bring(&|header| header.jwk = own.clone()),
        bring(&|header| header.jku = Some(forgers.url())),
        bring(&|header| header.x5u = Some(forgers.url())),
        bring(&|header| header.kid = Some(forgers.url())),
    ] {
        assert_eq!(status(bridge.address(), &token).await, 401, "{token}");
    }
    assert_eq!(forgers.asked(), [""; 0], "nobody is asked but the provider");
    // A header parameter that must be understood, but isn't.
    let mut critical = Header::new(ES256);
    critical.kid = Some("good".to_owned());
    let good = trusted.sign_with(&critical, &claims("alice"));
    critical.crit = Some(vec!["exp".to_owned()]);
    let bad = trusted.sign_with(&critical, &claims("alice"));
    assert_eq!(status(bridge.address(), &bad).await, 401);
    assert_eq!(status(bridge.address(), &good).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kid_is_only_compared() {
    let database = Database::migrated().await;
    let (trusted, forger) = (KeyPair::p256(), KeyPair::p256());
    let server = KeyServer::start(Answer::Keys(vec![trusted.jwk("good")])).await;
    let url = server.url();
    let options = options_without_secret(&database, &["--jwks-url", &url]);
    let bridge = Bridge::start_as(&options).await;
    let kids = [
        "../../../../dev/null",
        "/etc/passwd",
        "file:///dev/null",
        "x' union select 'secret' --",
        "'; drop table notifications; --",
        "good' or '1'='1",
        "good\0",
        "GOOD",
        " good",
        "http://127.0.0.1/keys.json",
        "%2e%2e%2f",
        "$(reboot)",
        "{{7*7}}",
        "\u{202e}doog",
    ];
    let forged: Vec<String> = kids.iter().map(|kid| forger.token(ES256, kid)).collect();
    // As if the key were an empty file or an empty response.
    let empty = kids.iter().map(|kid| {
        let mut header = Header::new(HS256);
        header.kid = Some((*kid).to_owned());
        encode(&header, &claims("alice"), &EncodingKey::from_secret(b"")).expect("a token")
    });
    let forged: Vec<String> = forged.into_iter().chain(empty).collect();
    // Concurrently, so that they share one fetch.
    let answers = forged
        .iter()
        .map(|token| final_status(bridge.address(), token));
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers, vec![401; forged.len()]);
    assert!(
        server
            .asked()
            .iter()
            .all(|line| line == "GET /keys.json HTTP/1.1"),
        "{:?}",
        server.asked()
    );
    // A head of that length isn't read, and a token of that length isn't checked.
    for length in [16 << 10, 1 << 20] {
        let token = forger.token(ES256, &"k".repeat(length));
        let bearer = format!("Bearer {token}");
        // If the server closes before everything is sent, there may be no response.
        if let Ok(answer) = get(bridge.address(), "/stream", &[("Authorization", &bearer)]).await {
            assert!((400..500).contains(&answer.status()), "{}", answer.status());
        }
    }
    assert_eq!(
        status(bridge.address(), &trusted.token(ES256, "good")).await,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn issuer_audience_and_times_are_checked_as_configured() {
    let database = Database::migrated().await;
    let pair = KeyPair::ed25519();
    let options = |more: &[&str]| {
        let arguments = [&["--jwt-public-key", pair.pem()], more].concat();
        options_without_secret(&database, &arguments)
    };
    let strict = Bridge::start_as(&options(&[
        "--jwt-issuer=https://id.example.org,https://old.example.org",
        "--jwt-audience=tidings, app",
    ]))
    .await;
    let loose = Bridge::start_as(&options(&[])).await;
    let now = get_current_timestamp();
    let good = json!({
        "sub": "alice", "exp": now + 600, "nbf": now - 5,
        "iss": "https://id.example.org", "aud": "tidings",
    });
    let with = |claim: &str, value: Value| {
        let mut claims = good.clone();
        claims[claim] = value;
        if claims[claim].is_null() {
            claims.as_object_mut().expect("an object").remove(claim);
        }
        claims
    };
    // The claims, and the statuses with and without a configured issuer and audience.
    let cases = [
        (good.clone(), 200, 200),
        (with("iss", json!("https://old.example.org")), 200, 200),
        (with("iss", json!("https://id.example.org/")), 401, 200),
        (with("iss", json!("https://evil.example.org")), 401, 200),
        (with("iss", json!("")), 401, 200),
        (with("iss", json!(7)), 401, 200),
        (with("iss", Value::Null), 401, 200),
        (with("aud", json!("app")), 200, 200),
        (with("aud", json!(["other", "app"])), 200, 200),
        (with("aud", json!("other")), 401, 200),
        (with("aud", json!(["other"])), 401, 200),
        (with("aud", json!([])), 401, 200),
        (with("aud", json!("tidings, app")), 401, 200),
        (with("aud", Value::Null), 401, 200),
        (with("exp", Value::Null), 401, 401),
        (with("exp", json!(now - 31)), 401, 401),
        (with("exp", json!(0)), 401, 401),
        (with("exp", json!(-1)), 401, 401),
        (with("exp", json!(1e300)), 401, 401),
        (with("exp", json!("tomorrow")), 401, 401),
        (with("exp", json!((now + 600).to_string())), 401, 401),
        (with("exp", json!([now + 600])), 401, 401),
        (with("nbf", json!(now + 60)), 401, 401),
        (with("nbf", json!("now")), 401, 401),
        // Clocks may differ by half a minute, but not more.
        (with("exp", json!(now - 10)), 200, 200),
        (with("nbf", json!(now + 10)), 200, 200),
        // A token that is longer than any real one is rejected without further work.
        (with("more", json!("x".repeat(5_800))), 200, 200),
        (with("more", json!("x".repeat(6_200))), 401, 401),
        // RFC 7519 allows fractions of a second.
        (with("exp", json!(now as f64 + 600.5)), 200, 200),
    ];
    for (claims, in_strict, in_loose) in cases {
        let token = pair.sign(EdDSA, "", &claims);
        for (bridge, expected) in [(&strict, in_strict), (&loose, in_loose)] {
            assert_eq!(status(bridge.address(), &token).await, expected, "{claims}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_is_in_the_claim_that_is_configured() {
    let database = Database::migrated().await;
    let pair = KeyPair::p256();
    let pem = pair.pem();
    let arguments = ["--jwt-public-key", pem, "--jwt-user-claim=uid"];
    let bridge = Bridge::start_as(&options_without_secret(&database, &arguments)).await;
    let exp = get_current_timestamp() + 600;
    let cases = [
        (json!({ "uid": "alice" }), Some("alice")),
        (json!({ "uid": "alice", "sub": "bob" }), Some("alice")),
        (json!({ "uid": 7 }), Some("7")),
        (json!({ "uid": u64::MAX }), Some("18446744073709551615")),
        (json!({ "uid": -7 }), Some("-7")),
        (json!({ "sub": "bob" }), None),
        (json!({ "uid": 7.0 }), None),
        (json!({ "uid": 1e30 }), None),
        (json!({ "uid": true }), None),
        (json!({ "uid": null, "sub": "bob" }), None),
        (json!({ "uid": ["alice"] }), None),
        (json!({ "uid": { "id": "alice" } }), None),
        (json!({ "uid": "" }), None),
        (json!({ "uid": "x".repeat(256) }), None),
        (json!({ "UID": "alice" }), None),
    ];
    for (mut claims, user) in cases {
        claims["exp"] = exp.into();
        let token = pair.sign(ES256, "", &claims);
        let Some(user) = user else {
            assert_eq!(status(bridge.address(), &token).await, 401, "{claims}");
            continue;
        };
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str())];
        let mut source = EventSource::open(bridge.address(), "/stream", &headers).await;
        until(&mut source, "tidings.caught-up").await;
        let send = format!("select send_notification('{user}', 'to {user}')");
        database.execute(&send).await;
        assert_eq!(source.next_event().await.data, format!("to {user}"));
        let sent = format!("select sent from notifications where text = 'to {user}'");
        database
            .until(&format!("select bool_and(sent) from ({sent}) s"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_keys_one_can_be_replaced_by_the_other() {
    let database = Database::migrated().await;
    let (old, new) = (KeyPair::p256(), KeyPair::rsa());
    let secrets = [
        "the old secret of 32 bytes or more",
        "the new one, with spaces, 32 or more",
    ];
    let start = async |secrets: &[&str], pairs: &[&KeyPair]| {
        let secrets = secrets.join("\n");
        let pem: String = pairs.iter().map(|pair| pair.pem()).collect();
        let arguments = ["--jwt-secret", &secrets, "--jwt-public-key", &pem];
        Bridge::start_as(&options_without_secret(&database, &arguments)).await
    };
    let tokens = [
        with_secret(HS256, &claims("alice"), secrets[0].as_bytes()),
        old.token(ES256, "old"),
        with_secret(HS256, &claims("alice"), secrets[1].as_bytes()),
        new.token(RS256, "new"),
    ];
    let steps: [(&[&str], &[&KeyPair], [u16; 4]); 3] = [
        (&secrets[..1], &[&old], [200, 200, 401, 401]),
        (&secrets, &[&old, &new], [200; 4]),
        (&secrets[1..], &[&new], [401, 401, 200, 200]),
    ];
    for (secrets, pairs, expected) in steps {
        let bridge = start(secrets, pairs).await;
        for (token, expected) in tokens.iter().zip(expected) {
            assert_eq!(status(bridge.address(), token).await, expected, "{token}");
        }
    }
}
