//! The keys and rules of tokens as an operator configures them: what is rejected at startup, and
//! how `tidings token` uses them.

use std::{fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::Algorithm::{ES256, EdDSA};
use tidings::{app::Parts, monitoring::logging::ErrorChain};
use tokio::process::Command;

use crate::support::{
    bridge::{Bridge, options_without_secret, status},
    database::Database,
    key_pair::KeyPair,
};

/// Long enough for each of the algorithms.
const LONG_SECRET: &str = "a secret of the tests that is long enough for HS512, 64 bytes or more";

/// A public RSA key of 1,024 bits, as PEM.
fn short_rsa_key() -> String {
    let mut number = vec![0x02, 0x81, 0x81, 0x00, 0xc1];
    number.extend([0x35; 127]);
    number.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    let mut der = vec![0x30, 0x81, number.len() as u8];
    der.extend(number);
    let body = STANDARD.encode(der);
    format!("-----BEGIN RSA PUBLIC KEY-----\n{body}\n-----END RSA PUBLIC KEY-----\n")
}

/// The same key with a changed number, which is not a point on the curve.
fn off_curve(pem: &str) -> String {
    let lines = pem.lines().filter(|line| !line.starts_with("--"));
    let mut der = STANDARD.decode(lines.collect::<String>()).expect("DER");
    *der.last_mut().expect("a point") ^= 1;
    let body = STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn public_keys_may_be_in_a_file_or_on_one_line() {
    let database = Database::empty().await;
    let (one, other) = (KeyPair::p256(), KeyPair::ed25519());
    let both = format!("# of 2026\r\n{}\n\n{}", one.pem(), other.pem());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("public-keys.pem");
    fs::write(&file, &both).expect("a file");
    let file = format!("--jwt-public-key-file={}", file.display());
    let line = format!("--jwt-public-key={}", both.replace('\n', "\\n"));
    for argument in [&file, &line] {
        let options = options_without_secret(&database, &[argument]);
        let tokens = options.jwt.tokens().expect("keys");
        for token in [one.token(ES256, ""), other.token(EdDSA, "")] {
            tokens.verify(&token).await.expect("a good token");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_weak_secret_or_of_no_use_keep_it_from_starting() {
    let database = Database::empty().await;
    let pair = rcgen::KeyPair::generate().expect("a key");
    let private = pair.serialize_pem();
    let public = pair.public_key_pem();
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
    let certificate = certificate.expect("a certificate").cert.pem();
    let short = short_rsa_key();
    let off_curve = off_curve(&public);
    let eleven = public.repeat(11);
    let cases: [(&[&str], &str); 20] = [
        (&[], "no authentication is configured"),
        (&["--jwt-public-key", &private], "it is a private key"),
        (&["--jwt-public-key", &certificate], "openssl x509"),
        (&["--jwt-public-key", &short], "an RSA key of 1024 bits"),
        (&["--jwt-public-key", &off_curve], "not a public key"),
        (
            &[
                "--jwt-public-key",
                &public,
                "--jwt-public-key-file=/dev/null",
            ],
            "TIDINGS_JWT_PUBLIC_KEY and TIDINGS_JWT_PUBLIC_KEY_FILE",
        ),
        (&["--jwt-public-key-file=/dev/null"], "it is empty"),
        (&["--jwt-public-key", "nonsense"], "it contains no key"),
        (&["--jwt-public-key", &eleven], "11 keys"),
        (
            &[
                "--jwt-public-key",
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            ],
            "not a public key",
        ),
        (
            &["--jwt-public-key", &public, "--jwt-algorithms=RS256"],
            "RS256 needs an RSA key",
        ),
        (
            &["--jwt-public-key", &public, "--jwt-algorithms=HS256"],
            "HS256 needs a secret",
        ),
        (
            &[
                "--jwt-public-key",
                &public,
                "--jwt-secret",
                LONG_SECRET,
                "--jwt-algorithms=ES256",
            ],
            "no algorithm for a secret",
        ),
        (
            &[
                "--jwks-url=https://id.example.org/keys",
                "--jwt-algorithms=HS256",
            ],
            "HS256 needs a secret",
        ),
        (&["--jwt-secret", "x y z"], "needs at least 32"),
        (
            &[
                "--jwt-secret",
                "a secret of 32 bytes, all in all",
                "--jwt-algorithms=HS512",
            ],
            "HS512 needs at least 64",
        ),
        (
            &["--jwt-secret", "a secret of 32 bytes, all in all\nshort"],
            "it has 5 bytes",
        ),
        (&["--jwks-url=http://id.example.org/keys"], "use https"),
        (
            &["--jwks-url=http://localhost.example.org/keys"],
            "use https",
        ),
        (&["--jwks-url=file:///etc/passwd"], "https://"),
    ];
    for (arguments, expected) in cases {
        let options = options_without_secret(&database, arguments);
        let error = Parts::of(&options).err().expect(expected);
        let error = ErrorChain(&error).to_string();
        assert!(error.contains(expected), "{arguments:?}: {error}");
        assert!(!error.contains("PRIVATE"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_command_prints_is_good_by_the_same_settings() {
    let database = Database::migrated().await;
    let secrets = format!("{LONG_SECRET}\nanother secret, of 32 bytes or more");
    let settings = [
        ("TIDINGS_JWT_SECRET", secrets.as_str()),
        ("TIDINGS_JWT_ALGORITHMS", "HS512,HS256"),
        ("TIDINGS_JWT_ISSUER", "https://id.example.org"),
        ("TIDINGS_JWT_AUDIENCE", "tidings,app"),
        ("TIDINGS_JWT_USER_CLAIM", "uid"),
    ];
    let print = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["token", "alice"])
        .envs(settings)
        .output();
    let token = String::from_utf8(print.await.expect("the binary").stdout).expect("text");
    let arguments = [
        "--jwt-secret",
        LONG_SECRET,
        "--jwt-algorithms=HS512",
        "--jwt-issuer=https://id.example.org",
        "--jwt-audience=tidings",
        "--jwt-user-claim=uid",
    ];
    let bridge = Bridge::start_as(&options_without_secret(&database, &arguments)).await;
    assert_eq!(status(bridge.address(), token.trim()).await, 200);
}
