//! A missing or unusable setting makes every command exit with 2 at once, with a message that names
//! the setting.

use std::{fs, path::Path, time::Duration};

use tokio::time::Instant;

use super::{Said, command, said};
use crate::support::{bridge::SECRET, dev::DataFolder};

/// All commands that connect to a database.
const CONNECTING: [&[&str]; 11] = [
    &["serve"],
    &["migrate"],
    &["migrate", "--dry-run"],
    &["check"],
    &["status"],
    &["send", "alice", "hello"],
    &["tail", "alice"],
    &["prune", "--sent-before=30d"],
    &["ticket", "alice"],
    &["uninstall", "--yes"],
    &["config"],
];

/// The command didn't wait: this is far less than the 30 s that it waits for an unreachable
/// database.
const AT_ONCE: Duration = Duration::from_secs(15);

impl Said {
    /// Asserts that it exited because of an unusable setting and named it, in a message of its own
    /// rather than a log line.
    fn unusable(&self, named: &str) {
        assert_eq!(self.code, Some(2), "{named}: {self:?}");
        let told = format!("{}{}", self.out, self.error);
        assert!(told.contains(named), "{named}: {self:?}");
    }
}

async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Said {
    let mut command = command(arguments);
    let secret = [("TIDINGS_JWT_SECRET", SECRET)];
    command.envs(secret).envs(environment.iter().copied());
    let begin = Instant::now();
    let said = said(command, "").await;
    assert!(begin.elapsed() < AT_ONCE, "{arguments:?} {environment:?}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_url_that_is_missing_or_malformed_ends_every_command_with_2() {
    for arguments in CONNECTING {
        run(arguments, &[]).await.unusable("set DATABASE_URL");
        for (name, value, named) in [
            ("DATABASE_URL", "nonsense", "DATABASE_URL can't be used"),
            ("DATABASE_URL", "service=app", "pg_service.conf"),
            (
                "DATABASE_URL_FILE",
                "/nowhere",
                "/nowhere, which can't be read",
            ),
            (
                "DATABASE_URL",
                "host=db user=u sslmode=verify-full sslrootcert=/nowhere",
                "/nowhere can't be read",
            ),
        ] {
            run(arguments, &[(name, value)]).await.unusable(named);
        }
        let flag = [arguments, &["--database-url=nonsense"]].concat();
        run(&flag, &[]).await.unusable("DATABASE_URL can't be used");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_serve_would_refuse_ends_it_and_what_looks_at_its_settings_with_2() {
    let url = ("DATABASE_URL", "host=/nowhere user=u");
    for arguments in [&["serve"][..], &["config"]] {
        for (name, value, named) in [
            ("TIDINGS_LISTEN", "8080", "localhost:8080"),
            ("TIDINGS_ADMIN_LISTEN", "example.org:8081", "localhost:8080"),
            ("TIDINGS_TLS_CERT", "cert.pem", "TIDINGS_TLS_KEY"),
            (
                "TIDINGS_JWT_USER_CLAIM",
                "sub\r",
                r#"TIDINGS_JWT_USER_CLAIM is "sub\r""#,
            ),
            (
                "TIDINGS_JWT_SECRET",
                "short",
                "TIDINGS_JWT_SECRET can't be used",
            ),
            ("TIDINGS_JWT_PUBLIC_KEY_FILE", "/nowhere", "/nowhere"),
            (
                "TIDINGS_JWKS_URL",
                "http://id.example.org",
                "TIDINGS_JWKS_URL",
            ),
            (
                "TIDINGS_TRUSTED_USER_HEADER",
                "X-User",
                "TIDINGS_TRUSTED_PROXIES",
            ),
            ("TIDINGS_TRUSTED_PROXIES", "nonsense", "--trusted-proxies"),
        ] {
            run(arguments, &[url, (name, value)]).await.unusable(named);
        }
    }
    run(&["token", "alice"], &[("TIDINGS_JWT_SECRET", "short")])
        .await
        .unusable("TIDINGS_JWT_SECRET can't be used");
    let elsewhere = run(&["dev", "--listen=:8080"], &[]).await;
    elsewhere.unusable("set TIDINGS_LISTEN to 127.0.0.1:8080");
    run(&["man", "nothing"], &[])
        .await
        .unusable("no command nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_of_the_log_that_is_none_ends_every_command_with_2() {
    let all = CONNECTING.iter().copied();
    let others: [&[&str]; 4] = [
        &["token", "alice"],
        &["dev"],
        &["health"],
        &["completions", "sh"],
    ];
    for arguments in all
        .chain(others)
        .filter(|arguments| arguments[0] != "completions")
    {
        run(arguments, &[("TIDINGS_LOG", "inof")])
            .await
            .unusable("TIDINGS_LOG (or --log) can't be used: \"inof\" is not a level");
        let flag = [arguments, &["--log=warn,tidings=verbose"]].concat();
        run(&flag, &[]).await.unusable("\"verbose\" is not a level");
    }
    // Compose passes unset variables as empty ones.
    let token = run(&["token", "alice"], &[("TIDINGS_LOG", "")]).await;
    token.well();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_end_of_windows_is_refused_in_settings_and_trimmed_from_secrets() {
    let folder = DataFolder::new();
    fs::create_dir_all(folder.path()).expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path.to_str().expect("text").to_owned()
    };
    for arguments in CONNECTING {
        let refused = run(arguments, &[("TIDINGS_SCHEMA", "app\r")]).await;
        refused.unusable(r#"TIDINGS_SCHEMA is "app\r""#);
    }
    let parsed = run(&["health"], &[("TIDINGS_ADMIN_LISTEN", "nonsense\r")]).await;
    parsed.unusable(r#"TIDINGS_ADMIN_LISTEN is "nonsense\r""#);

    let expected = run(&["config", "--json"], &[("DATABASE_URL", "host=db user=u")]).await;
    assert_eq!(expected.code, Some(0), "{expected:?}");
    // As written by Windows editors and shells, and by `echo`.
    let secret = format!("\u{feff}{SECRET}\r\n");
    let url = "\u{feff}postgres://u@db/app\r\n";
    let files = [
        ("TIDINGS_JWT_SECRET_FILE", file("secret", secret.as_bytes())),
        ("DATABASE_URL_FILE", file("url", url.as_bytes())),
    ];
    let mut in_files = command(&["config", "--json"]);
    in_files.envs(files.clone());
    let read = said(in_files, "").await;
    assert_eq!(read.json()["problems"], serde_json::json!([]), "{read:?}");
    // It is the same secret.
    let mut token = command(&["token", "alice"]);
    token.envs(files.into_iter().take(1));
    let token = said(token, "").await.well();
    let options = crate::support::bridge::options_without_secret(
        &crate::support::database::Database::at("host=db user=u dbname=x ".to_owned()),
        &["--jwt-secret", SECRET],
    );
    let tokens = options.jwt.tokens().expect("a secret");
    tokens.verify(token.trim()).await.expect("the same secret");
    for (name, value) in [
        ("DATABASE_URL", "postgres://u@db/app\r\n"),
        ("DATABASE_URL", " host=db user=u \n"),
    ] {
        let read = run(&["config", "--json"], &[(name, value)]).await;
        assert_eq!(read.json()["problems"], serde_json::json!([]), "{read:?}");
    }

    let utf_16: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain(SECRET.bytes().flat_map(|b| [b, 0]))
        .collect();
    let utf_16 = file("utf-16", &utf_16);
    let mut refused = command(&["token", "alice"]);
    refused.env("TIDINGS_JWT_SECRET_FILE", &utf_16);
    said(refused, "").await.unusable("UTF-16");
    assert!(Path::new(&utf_16).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_may_begin_with_a_byte_order_mark() {
    let folder = DataFolder::new();
    fs::create_dir_all(folder.path()).expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let file = |name: &str, pem: String| {
        let path = folder.path().join(name);
        fs::write(&path, format!("\u{feff}{}", pem.replace('\n', "\r\n"))).expect("a file");
        path.to_str().expect("text").to_owned()
    };
    let certificate = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let files = [
        ("DATABASE_URL", "host=db user=u"),
        ("TIDINGS_TLS_CERT", &certificate),
        ("TIDINGS_TLS_KEY", &key),
    ];
    let read = run(&["config", "--json"], &files).await;
    assert_eq!(read.json()["problems"], serde_json::json!([]), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_is_no_setting_is_warned_of_and_stops_nothing() {
    let mistyped = [
        ("DATABASE_URL", "host=/nowhere user=u"),
        ("TIDINGS_HEARTBEET", "20s"),
        ("TIDINGS_OF_A_LATER_VERSION", "1"),
    ];
    let expected = [
        "TIDINGS_HEARTBEET is set but has no effect: there is no such setting; \
         did you mean TIDINGS_HEARTBEAT?",
        "TIDINGS_OF_A_LATER_VERSION is set but has no effect",
    ];
    // In the log of commands that run, and in the report of those that check settings.
    let token = run(&["token", "alice"], &mistyped).await;
    let config = run(&["config"], &mistyped).await;
    let check = run(&["check"], &mistyped).await;
    assert_eq!(token.code, Some(0), "{token:?}");
    assert_eq!(config.code, Some(0), "{config:?}");
    for warning in expected {
        assert!(token.error.contains(warning), "{token:?}");
        assert!(config.out.contains(warning), "{config:?}");
        assert!(check.out.contains(warning), "{check:?}");
    }
    let json = run(&["config", "--json"], &mistyped).await.json();
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(2), "{json}");
    // An unparsable value makes it exit before the log exists.
    let both = [("TIDINGS_LISTEN", "nonsense"), ("TIDINGS_LISTN", ":8080")];
    let refused = run(&["serve"], &both).await;
    refused.unusable("TIDINGS_LISTN is set but has no effect");
}
