//! The command line: its output and its error messages.

use tokio::process::Command;

use crate::support::{
    bridge::{Bridge, SECRET},
    database::Database,
    event_source::EventSource,
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_it_prints_opens_the_stream_of_its_user() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["token", "alice", "--ttl=1m"])
        .env("TIDINGS_JWT_SECRET", SECRET)
        .output()
        .await
        .expect("the binary");
    let token = String::from_utf8(output.stdout).expect("text");
    let bearer = format!("Bearer {}", token.trim_end());
    let mut source =
        EventSource::open(bridge.address(), "/stream", &[("Authorization", &bearer)]).await;
    until(&mut source, "tidings.caught-up").await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    assert_eq!(source.next_event().await.data, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_starting_is_told_with_what_to_do() {
    let database = Database::migrated().await;
    let tidings = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command
            .args(arguments)
            .env_remove("DATABASE_URL")
            .env_remove("TIDINGS_JWT_SECRET");
        command
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!("--listen={}", taken.local_addr().expect("an address"));
    let url = &database.connection_string();
    let cases: [(&[&str], &str); 8] = [
        (&["serve"], "TIDINGS_JWT_SECRET"),
        (&["serve", "--jwt-secret=short"], "openssl rand -hex 32"),
        (&["serve", "--jwt-secret", SECRET], "set DATABASE_URL"),
        (
            &["serve", "--jwt-secret", SECRET, "--database-url=nonsense"],
            "postgres://user:password@host",
        ),
        (
            &[
                "serve",
                "--jwt-secret",
                SECRET,
                "--database-url",
                url,
                &taken,
            ],
            "TIDINGS_LISTEN",
        ),
        (&["serve", "--pool-size=1"], "2..=1000"),
        (&["token", "alice"], "TIDINGS_JWT_SECRET"),
        (&["dev", "--listen=0.0.0.0:8080"], "127.0.0.1:8080"),
    ];
    for (arguments, expected) in cases {
        let output = tidings(arguments).output().await.expect("the binary");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(!said.contains(SECRET), "{arguments:?}: {said}");
    }
}
