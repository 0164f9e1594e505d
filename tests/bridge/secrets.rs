//! What must not show does not show: in the log, in an error, in --help, in the
//! list of processes.

use std::fs;

use tokio::process::Command;

use crate::support::{
    bridge::{SECRET, token},
    database::Database,
    event_source::{EventSource, get},
    process::Served,
    until,
};

const PASSWORD: &str = "a-password-that-nobody-checks";

/// All that the program is told, and all that its clients tell it, at the most
/// talkative level.
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
