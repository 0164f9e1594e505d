//! Names of roles, events and messages of Postgres are never executed by a terminal; and commands
//! end when the reader of their output is gone.

use std::{
    io::{BufRead, BufReader, PipeReader},
    process::Stdio,
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncBufReadExt, BufReader as AsyncBufReader},
    process::Child,
    time::{Instant, timeout},
};

use super::{Said, command, run, said};
use crate::support::{
    PATIENCE,
    bridge::SECRET,
    database::{Database, start_cluster},
    process::{Served, signal},
};

/// A role whose name sets the terminal's title, erases the screen with a C1 control character,
/// moves back and hides what follows.
const ROLE: &str = "evil\x1b]0;t\x07\u{9b}2J\x08\x1b[8m";

/// The same name as the program prints it.
const SHOWN: &str = r"evil\u{1b}]0;t\u{7}\u{9b}2J\u{8}\u{1b}[8m";

/// A reader that is gone is noticed within a fraction of a second.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

fn is_harmless(text: &str) -> bool {
    let is_harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    !text.contains(is_harmful)
}

fn expect_harmless(said: &Said, shown: &str) {
    let all = format!("{}{}", said.out, said.error);
    assert!(is_harmless(&all), "{said:?}");
    assert!(all.contains(shown), "{shown}: {said:?}");
}

/// A database in which that role may read notifications, and which has an event of that name from
/// before events had to be printable.
async fn hostile() -> (private_postgres::Cluster, Database) {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    database
        .superuser()
        .execute(&format!(
            "create role \"{ROLE}\" login; grant select on notifications to \"{ROLE}\"; \
             alter table notifications drop constraint notifications_event_printable; \
             insert into notifications (user_id, text, event) values ('alice', '{ROLE}', '{ROLE}')"
        ))
        .await;
    (cluster, database)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_prints_what_a_terminal_would_execute() {
    let (_cluster, database) = hostile().await;
    let itself = database.as_role(ROLE);
    // In findings, in messages of Postgres and ours, and in facts.
    let json = SHOWN
        .replace(r"\u{1b}", r"\u001b")
        .replace(r"\u{7}", r"\u0007")
        .replace(r"\u{8}", r"\b")
        .replace(r"\u{9b}", r"\u009b");
    for (database, arguments, shown) in [
        (&database, &["check"][..], SHOWN),
        (&database, &["check", "--json"], &json),
        (&itself, &["status"], SHOWN),
        (&itself, &["status", "--json"], "\"server\""),
        (&itself, &["send", "alice", "hello"], SHOWN),
        (&itself, &["ticket", "alice"], SHOWN),
        (&itself, &["prune", "--sent-before=1h"], "permission denied"),
        (&itself, &["migrate"], "permission denied"),
        (&itself, &["uninstall"], ""),
        (
            &itself,
            &["send", "alice", "hello", "--schema=nowhere\u{9b}2J"],
            r"nowhere\u{9b}2J",
        ),
        (
            &itself,
            &["send", ROLE, ROLE, &format!("--event={ROLE}")],
            SHOWN,
        ),
    ] {
        let said = run(database, arguments).await;
        expect_harmless(&said, shown);
        if arguments.contains(&"--json") {
            said.json();
        }
    }
    let unknown = database.as_role("nobody\x1b[2J\u{9b}2J");
    expect_harmless(
        &run(&unknown, &["status"]).await,
        r"nobody\u{1b}[2J\u{9b}2J",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_before_they_had_to_be_printable_is_shown_and_not_executed() {
    let (_cluster, database) = hostile().await;
    for (form, shown) in [
        (&[][..], SHOWN),
        (&["--json"], r"\u001b]0;t\u0007\u009b2J\b"),
    ] {
        let mut tail = command(&[&["tail", "alice"], form].concat());
        tail.env("DATABASE_URL", database.connection_string());
        let mut child = tail.spawn().expect("the binary");
        let mut lines = AsyncBufReader::new(child.stdout.take().expect("its output")).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("a line");
        let line = line.expect("text").expect("a line");
        assert!(is_harmless(&line), "{line:?}");
        assert_eq!(line.matches(shown).count(), 2, "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_holds_what_a_terminal_would_execute() {
    let (_cluster, database) = hostile().await;
    let mut bridge = Served::start(&database, &[]).await;
    let warned = bridge.until_logged("WARN", "can read notifications").await;
    let message = warned["message"].as_str().expect("a message");
    assert!(message.contains(ROLE), "its meaning is kept: {message:?}");
    drop(bridge);
    for form in ["text", "json"] {
        let mut serve = command(&[
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--log-format",
            form,
        ]);
        serve
            .env("DATABASE_URL", database.connection_string())
            .env("TIDINGS_JWT_SECRET", SECRET);
        let mut child = serve.spawn().expect("the binary");
        let mut lines = AsyncBufReader::new(child.stderr.take().expect("its log")).lines();
        let mut warned = false;
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("a line");
            let line = line.expect("text").expect("it goes on");
            assert!(is_harmless(&line), "{line:?}");
            warned |= line.contains("can read notifications") && line.contains("evil");
            if line.contains("streaming on") {
                break;
            }
        }
        assert!(warned, "{form}");
        signal(&child, Signal::SIGTERM);
        let ended = timeout(PATIENCE, child.wait()).await;
        assert!(ended.expect("an end").expect("a status").success());
    }
}

/// A command whose output is a pipe that a test can close.
fn piped(arguments: &[&str], url: &str) -> (Child, PipeReader) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = command(arguments);
    command.env("DATABASE_URL", url).stdout(Stdio::from(writer));
    (command.spawn().expect("the binary"), reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_ends_when_nobody_reads_it_also_while_no_rows_come() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    let (mut child, reader) = piped(&["tail", "alice"], &database.connection_string());
    let mut reader = BufReader::new(reader);
    let reading = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        (line, reader)
    });
    let (line, reader) = timeout(PATIENCE, reading)
        .await
        .expect("a line")
        .expect("no panic");
    assert!(line.ends_with("hello\n"), "{line}");
    drop(reader);
    let begin = Instant::now();
    let ended = timeout(PATIENCE, child.wait()).await.expect("an end");
    assert!(ended.expect("a status").success());
    assert!(begin.elapsed() < NOTICED_WITHIN, "{:?}", begin.elapsed());
}

/// The exit code counts even if the output is not read, and even if there is no database yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_counts_although_nobody_reads_what_it_rests_on() {
    let database = Database::migrated().await;
    let good = database.connection_string();
    database
        .superuser()
        .execute("drop trigger tidings_reopen on notifications")
        .await;
    let printing: [&[&str]; 5] = [
        &["check"],
        &["check", "--json"],
        &["status"],
        &["status", "--json"],
        &["migrate", "--dry-run"],
    ];
    for arguments in printing {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = command(arguments);
        command
            .env("DATABASE_URL", &good)
            .stdout(Stdio::from(writer));
        let said = said(command, "").await;
        let expected = if arguments[0] == "migrate" { 0 } else { 1 };
        assert_eq!(said.code, Some(expected), "{arguments:?}: {said:?}");
    }
    // Nothing is removed without being printed first.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut uninstall = command(&["uninstall", "--yes"]);
    let url = database.superuser().connection_string();
    uninstall
        .env("DATABASE_URL", url)
        .stdout(Stdio::from(writer));
    let told = said(uninstall, "").await.badly();
    assert!(told.contains("nothing was removed"), "{told}");
    database.ids("select count(*) from notifications").await;
}
