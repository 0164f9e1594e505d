//! Secrets don't appear in the log, in errors, in --help or in the list of processes.

use std::fs;

use tokio::process::Command;

use crate::support::{
    bridge::{SECRET, token},
    database::Database,
    event_source::{EventSource, get},
    process::Served,
    tls::{authority::Authority, http2::Http2, tunnel::ORIGIN},
    until,
};

const PASSWORD: &str = "a-password-that-nobody-checks";

/// Everything that the program and its clients send it, at the most verbose level.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_holds_a_secret_a_token_a_ticket_or_a_query() {
    let database = Database::migrated().await;
    let url = format!("{} password={PASSWORD}", database.connection_string());
    let bridge = Served::start(&Database::at(url), &["--log=trace"]).await;
    let address = bridge.address();

    let client = database.connect().await;
    let made = client
        .query_one("select create_stream_ticket('alice')", &[])
        .await;
    let ticket: String = made.expect("a ticket").get(0);
    let (token, bad) = (token("alice"), "a-token-that-is-none");
    let unknown = "0".repeat(64);
    let open = async |path: &str, headers: &[(&str, &str)]| {
        let mut source = EventSource::open(address, path, headers).await;
        until(&mut source, "tidings.caught-up").await;
    };
    open(&format!("/stream?ticket={ticket}&format=json"), &[]).await;
    open("/stream", &[("Authorization", &format!("Bearer {token}"))]).await;
    open("/stream", &[("Cookie", &format!("tidings_token={token}"))]).await;
    for (path, header) in [
        (format!("/stream?ticket={unknown}"), ("Accept", "*/*")),
        ("/stream?secret-parameter=1".to_owned(), ("Accept", "*/*")),
        (
            "/stream".to_owned(),
            ("Authorization", &*format!("Bearer {bad}")),
        ),
        (
            "/nowhere?secret-parameter=1".to_owned(),
            ("Cookie", &*format!("tidings_token={bad}")),
        ),
    ] {
        let answer = get(address, &path, &[header]).await.expect("an answer");
        let said = answer.text().await;
        assert!(!said.contains(bad) && !said.contains(&unknown), "{said}");
    }
    let command_line = bridge.command_line();
    let log = bridge.log().await;
    assert!(log.iter().any(|line| line.contains("TRACE")));
    for secret in [
        PASSWORD,
        SECRET,
        &token,
        &ticket,
        bad,
        &unknown,
        "secret-parameter",
    ] {
        assert!(!command_line.contains(secret), "{command_line}");
        let lines = log.iter().filter(|line| line.contains(secret));
        assert_eq!(lines.collect::<Vec<_>>(), [""; 0], "{secret}");
    }
}

/// The Postgres library logs the parameters of each query if its log level is enabled.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_holds_a_parameter_of_a_query() {
    const USER: &str = "a-user-whom-no-log-names";
    for level in [
        "debug",
        "trace",
        "info,tokio_postgres=trace,tokio_postgres::query=trace",
        "trace,tokio_postgres::query[connection]=trace",
    ] {
        let database = Database::migrated().await;
        let bridge = Served::start(&database, &["--log", level]).await;
        let client = database.connect().await;
        let made = client
            .query_one("select create_stream_ticket($1)", &[&USER])
            .await;
        let ticket: String = made.expect("a ticket").get(0);
        let path = format!("/stream?ticket={ticket}");
        let mut by_ticket = EventSource::open(bridge.address(), &path, &[]).await;
        until(&mut by_ticket, "tidings.caught-up").await;
        let mut by_token = bridge.connect(USER, None).await;
        until(&mut by_token, "tidings.caught-up").await;
        let sent = client
            .query_one(
                "select send_notification($1, 'a-text-that-no-log-holds')",
                &[&USER],
            )
            .await;
        sent.expect("a row");
        for source in [&mut by_ticket, &mut by_token] {
            assert_eq!(source.next_event().await.data, "a-text-that-no-log-holds");
        }
        database
            .until("select bool_and(sent) from notifications")
            .await;
        drop((by_ticket, by_token));
        let hash: Vec<u8> = database
            .superuser()
            .connect()
            .await
            .query_one("select hash from stream_tickets", &[])
            .await
            .expect("a hash")
            .get(0);
        let log = bridge.log().await;
        let of_library = log.iter().any(|line| line.contains("tokio_postgres"));
        assert!(of_library, "{level}: the rest of the library is logged");
        let shown = format!("{hash:?}");
        let shown = shown.trim_matches(['[', ']']);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        for private in [USER, "a-text-that", &ticket, shown, &hex, "with parameters"] {
            let lines = log.iter().filter(|line| line.contains(private));
            assert_eq!(lines.collect::<Vec<_>>(), [""; 0], "{level}: {private}");
        }
    }
}

/// The HTTP/2 and TLS libraries log what they read and compress.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_holds_a_header_or_a_path_of_http_2() {
    const USER: &str = "a-user-whom-no-log-names";
    let database = Database::migrated().await;
    let authority = Authority::new();
    let own = authority.issue("bridge", &[ORIGIN]).settings();
    let mut settings = vec!["--log=trace"];
    settings.extend(own.iter().map(String::as_str));
    let bridge = Served::start(&database, &settings).await;
    let client = database.connect().await;
    let made = client
        .query_one("select create_stream_ticket($1)", &[&USER])
        .await;
    let ticket: String = made.expect("a ticket").get(0);
    let connection = Http2::connect(bridge.address(), &authority).await;
    let mut by_token = connection.open(USER).await;
    by_token.until("event: tidings.caught-up").await;
    let mut by_ticket = connection.open_by_ticket(&ticket).await;
    by_ticket.until("event: tidings.caught-up").await;
    let cookie = format!("tidings_token={}", token(USER));
    let request = http::Request::get("https://localhost/stream").header("cookie", &cookie);
    let mut by_cookie = connection.open_with(request).await;
    by_cookie.until("event: tidings.caught-up").await;
    let sent = client
        .query_one(
            "select send_notification($1, 'a-text-that-no-log-holds')",
            &[&USER],
        )
        .await;
    sent.expect("a row");
    for stream in [&mut by_token, &mut by_ticket, &mut by_cookie] {
        stream.until("data: a-text-that-no-log-holds").await;
    }
    drop((by_token, by_ticket, by_cookie, connection));
    let log = bridge.log().await;
    assert!(
        log.iter().any(|line| line.contains("\"h2::")),
        "it is logged"
    );
    let signature = token(USER);
    let signature = signature.rsplit('.').next().expect("a signature");
    for private in [USER, "a-text-that", &ticket, signature, SECRET] {
        let lines = log.iter().filter(|line| line.contains(private));
        assert_eq!(lines.collect::<Vec<_>>(), [""; 0], "{private}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn help_and_refusals_show_no_secret() {
    for arguments in [
        &["serve", "--help"][..],
        &["serve", "-h"],
        &["token", "--help"],
        &["migrate", "--help"],
        &["serve", "--pool-size=none"],
        &["serve"],
        &["token", "alice"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .args(arguments)
            .env(
                "DATABASE_URL",
                "postgres://app:hunter2hunter2@127.0.0.1:1/db?sslmode=nonsense",
            )
            .env(
                "TIDINGS_DIRECT_DATABASE_URL",
                "postgres://app:hunter2hunter2@127.0.0.1:1/db?sslmode=nonsense",
            )
            .env(
                "TIDINGS_REPLICA_DATABASE_URL",
                "postgres://app:hunter2hunter2@127.0.0.1:1/db?sslmode=nonsense",
            )
            .env("TIDINGS_JWT_SECRET", "hunter2hunter2")
            .output()
            .await
            .expect("the binary");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(
            !said.is_empty() && !said.contains("hunter2"),
            "{arguments:?}: {said}"
        );
    }
}

/// As container platforms mount them.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_may_come_in_files_but_not_twice() {
    let folder = std::env::temp_dir().join(format!("tidings-secrets-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("jwt");
    fs::write(&file, format!("{SECRET}\n")).expect("a file");
    let run = async |variables: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
            .args(["token", "alice"])
            .env_remove("TIDINGS_JWT_SECRET")
            .envs(variables.iter().copied())
            .output()
            .await
            .expect("the binary");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let path = file.to_str().expect("a path");
    assert_eq!(
        run(&[("TIDINGS_JWT_SECRET_FILE", path)]).await,
        (true, String::new())
    );
    let (_, said) = run(&[
        ("TIDINGS_JWT_SECRET_FILE", path),
        ("TIDINGS_JWT_SECRET", SECRET),
    ])
    .await;
    assert!(
        said.contains("both set") && !said.contains(SECRET),
        "{said}"
    );
    let missing = folder.join("missing");
    let (_, said) = run(&[("TIDINGS_JWT_SECRET_FILE", missing.to_str().expect("a path"))]).await;
    assert!(said.contains("missing, which can't be read"), "{said}");
    fs::write(&file, "\n").expect("a file");
    let (_, said) = run(&[("TIDINGS_JWT_SECRET_FILE", path)]).await;
    assert!(said.contains("it is empty"), "{said}");
    fs::remove_dir_all(&folder).expect("removed");
}
