//! `tail` shows what a user's stream shows, and consumes nothing from it.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::{command, run};
use crate::support::{PATIENCE, bridge::Bridge, database::Database, until};

struct Tail {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tail {
    fn start(database: &Database, more: &[&str]) -> Self {
        let mut command = command(&[&["tail", "alice"], more].concat());
        command.env("DATABASE_URL", database.connection_string());
        Self::run(command)
    }

    fn run(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("a line").expect("text").expect("it goes on")
    }

    async fn json(&mut self) -> Value {
        serde_json::from_str(&self.line().await).expect("JSON")
    }

    async fn text(&mut self) -> String {
        self.json().await["text"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    /// The first line on standard error.
    async fn complaint(&mut self) -> String {
        let said = self.child.stderr.take().expect("its log");
        let mut lines = BufReader::new(said).lines();
        let line = timeout(PATIENCE, lines.next_line()).await;
        line.expect("a line").expect("text").expect("a complaint")
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

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_the_topics_that_the_user_has_while_she_has_them() {
    let database = Database::migrated().await;
    let mut slow = database.connect().await;
    let late = slow.transaction().await.expect("a transaction");
    let send = "select send_to_topic('project:7', $1)";
    late.query_one(send, &[&"late"]).await.expect("a row");
    for work in [
        "select send_to_topic('project:7', 'before')",
        "select subscribe('alice', 'project:7'), subscribe('bob', 'project:8')",
        "select send_to_topic('project:7', 'after')",
        "select send_to_topic('project:8', 'not hers')",
        "select send_notification('alice', 'own')",
    ] {
        database.execute(work).await;
    }
    let mut tail = Tail::start(&database, &["--json"]);
    let line = tail.json().await;
    assert_eq!(
        (&line["topic"], &line["text"]),
        (&"project:7".into(), &"after".into())
    );
    let line = tail.json().await;
    assert_eq!((line.get("topic"), &line["text"]), (None, &"own".into()));
    late.commit().await.expect("a commit");
    assert_eq!(tail.text().await, "late");

    database
        .execute("select send_to_everyone('everyone')")
        .await;
    let line = tail.json().await;
    assert_eq!(
        (&line["topic"], &line["text"]),
        (&"*".into(), &"everyone".into())
    );
    // Joining and leaving take effect with the transaction. The row of a transaction that also
    // subscribes her is hers, even if a younger one was seen first.
    let joining = slow.transaction().await.expect("a transaction");
    joining
        .batch_execute(
            "select send_to_topic('project:9', 'welcome'), subscribe('alice', 'project:9')",
        )
        .await
        .expect("a membership");
    database
        .execute(
            "select send_to_topic('project:9', 'younger'); \
             select send_notification('alice', 'seen')",
        )
        .await;
    assert_eq!(tail.text().await, "seen");
    joining.commit().await.expect("a commit");
    let mut both = [tail.text().await, tail.text().await];
    both.sort_unstable();
    assert_eq!(both, ["welcome", "younger"]);
    for work in [
        "select unsubscribe('alice', 'project:9')",
        "select send_to_topic('project:9', 'without her')",
        "select send_to_topic('project:7', 'with her')",
    ] {
        database.execute(work).await;
    }
    assert_eq!(tail.text().await, "with her");

    // A stream of hers still receives all of it.
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect("alice").await;
    let got = until(&mut alice, "tidings.caught-up").await;
    let mut got: Vec<&str> = got.iter().map(|event| event.data.as_str()).collect();
    got.retain(|data| !data.starts_with('{'));
    got.sort_unstable();
    assert_eq!(got, ["after", "late", "own", "seen", "with her"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_only_the_topics_that_were_asked_for_and_says_which_she_lacks() {
    let database = Database::migrated().await;
    database
        .execute(
            "select subscribe('alice', 'project:7'), subscribe('alice', 'project:8'); \
             select send_to_topic('project:8', 'not asked for'); \
             select send_to_topic('project:7', e'asked for\\x1b', event => 'build')",
        )
        .await;
    let mut tail = Tail::start(&database, &["--topic=project:7", "--topic=project:9"]);
    let line = tail.line().await;
    assert!(
        line.ends_with(r"  build for project:7  asked for\u{1b}"),
        "{line}"
    );
    let told = tail.complaint().await;
    assert!(
        told.contains("alice is not subscribed to project:9"),
        "{told}"
    );
    database
        .execute(
            "select send_to_everyone('not asked for either'); \
             select send_notification('alice', 'own')",
        )
        .await;
    let line = tail.line().await;
    assert!(line.ends_with("  message  own"), "{line}");
    // It goes on with the topic if she joins.
    database
        .execute(
            "select subscribe('alice', 'project:9'); select send_to_topic('project:9', 'joined')",
        )
        .await;
    let line = tail.line().await;
    assert!(line.ends_with("  message for project:9  joined"), "{line}");

    for topic in ["", "a\tb"] {
        let topic = format!("--topic={topic}");
        let told = run(&database, &["tail", "alice", &topic]).await.misused();
        assert!(told.contains("1 to 255 bytes"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_reads_the_memberships_where_the_bridges_read_them() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "create schema app; create table app.members (user_id text, team int); \
             create view app.memberships as \
             select m.user_id, 'team:' || m.team as topic, null::pg_snapshot as since \
             from app.members as m; \
             grant usage on schema app to bridge; grant select on app.memberships to bridge; \
             insert into app.members values ('alice', 3); \
             select subscribe('alice', 'project:7')",
        )
        .await;
    let mut command = command(&["tail", "alice"]);
    command
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_MEMBERSHIPS", "app.memberships");
    let mut tail = Tail::run(command);
    database
        .execute("select send_notification('alice', 'begun')")
        .await;
    tail.line().await;
    database
        .execute("select send_to_topic('project:7', 'not read'), send_to_topic('team:3', 'read')")
        .await;
    let line = tail.line().await;
    assert!(line.ends_with("  message for team:3  read"), "{line}");

    let unknown = ["tail", "alice", "--memberships=app.nothing"];
    let told = run(&database, &unknown).await.badly();
    assert!(told.contains("app.nothing doesn't exist"), "{told}");
}
