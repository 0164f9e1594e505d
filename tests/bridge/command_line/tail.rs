//! `tail` shows what a user's stream shows, and consumes nothing from it.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::timeout,
};

use super::command;
use crate::support::{PATIENCE, bridge::Bridge, database::Database, until};

struct Tail {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(database: &Database, more: &[&str]) -> Self {
        let mut command = command(&[&["tail", "alice"], more].concat());
        command.env("DATABASE_URL", database.connection_string());
        let mut child = command.spawn().expect("the binary");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self {
            _child: child,
            lines,
        }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("a line").expect("text").expect("it goes on")
    }

    async fn text(&mut self) -> String {
        let line: Value = serde_json::from_str(&self.line().await).expect("JSON");
        line["text"].as_str().expect("a text").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_waits_and_what_comes_and_leaves_it_to_the_user() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', 'waits'), send_notification('bob', 'not hers')")
        .await;
    let mut tail = Tail::start(&database, &["--json"]);
    assert_eq!(tail.text().await, "waits");

    // In the order of commits, even if an id was assigned earlier.
    let mut slow = database.connect().await;
    let late = slow.transaction().await.expect("a transaction");
    let send = "select send_notification('alice', $1)";
    late.query_one(send, &[&"late"]).await.expect("a row");
    database
        .execute("select send_notification('alice', 'soon')")
        .await;
    assert_eq!(tail.text().await, "soon");
    late.commit().await.expect("a commit");
    assert_eq!(tail.text().await, "late");

    // The rows are still owed to her.
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect("alice").await;
    let got = until(&mut alice, "tidings.caught-up").await;
    let mut got: Vec<&str> = got.iter().map(|event| event.data.as_str()).collect();
    got.sort_unstable();
    assert_eq!(got, ["late", "soon", "waits"]);
    // `tail` also shows rows that her browser has been sent.
    database
        .execute("select send_notification('alice', 'both')")
        .await;
    assert_eq!(alice.next_event().await.data, "both");
    assert_eq!(tail.text().await, "both");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_commands_no_terminal_and_stays_one_line() {
    let database = Database::migrated().await;
    database
        .execute("select send_notification('alice', e'\\x1b[2Jone\\ntwo\\u0085', event => 'build')")
        .await;
    let line = Tail::start(&database, &[]).line().await;
    assert!(
        line.ends_with("  build  \\u{1b}[2Jone\\ntwo\\u{85}"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_begins_with_the_last_rows_if_asked_and_survives_its_session() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "insert into notifications (user_id, text, event, sent_at) values \
             ('alice', 'one', null, now()), ('alice', E'two\\n\\x1b[31m', 'news', now())",
        )
        .await;
    let mut tail = Tail::start(&database, &["--replay=1"]);
    let line = tail.line().await;
    assert!(line.ends_with(r"  news  two\n\u{1b}[31m"), "{line}");
    database
        .superuser()
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name = 'tidings'",
        )
        .await;
    database
        .execute("select send_notification('alice', 'three')")
        .await;
    let line = tail.line().await;
    assert!(line.ends_with("  message  three"), "{line}");
}
