//! Rows that no bridge can deliver, because the table's constraints that rule them out were
//! dropped. They are skipped and delay no other row.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    bridge::NONE_RECENT, database::Database, event_source::EventSource, process::Served, row_id,
    until,
};

/// How late the first valid row after them may be.
const LATEST: Duration = Duration::from_secs(2);

/// More than two pages of the tail, and four of a user.
const COUNT: usize = 2_100;

/// Drops the table's constraints.
async fn allow_everything(database: &Database) {
    let alter = "alter table notifications \
        drop constraint notifications_user_id_length, \
        drop constraint notifications_text_length, \
        drop constraint notifications_event_length, \
        drop constraint notifications_event_one_line, \
        drop constraint notifications_event_printable, \
        drop constraint notifications_id_positive, \
        drop constraint notifications_one_addressee, \
        drop constraint notifications_topic_form, \
        alter user_id drop not null, alter text drop not null, alter created_at drop not null";
    database.owner().execute(alter).await;
}

/// User, text and event of rows without a valid user.
const OF_NOBODY: [[&str; 3]; 3] = [
    ["''", "'text'", "null"],
    ["repeat('u', 300)", "'text'", "null"],
    ["null", "'text'", "null"],
];
const OF_ALICE: [[&str; 3]; 5] = [
    ["'alice'", "null", "null"],
    ["'alice'", "repeat('x', 1048577)", "null"],
    ["'alice'", "'text'", "''"],
    ["'alice'", "'text'", "repeat('e', 300)"],
    ["'alice'", "'text'", "E'open\\ndata: forged'"],
];

async fn insert(database: &Database, [user, text, event]: [&str; 3], count: usize) {
    let insert = format!(
        "insert into notifications (user_id, text, event) \
         select {user}, {text}, {event} from generate_series(1, {count})"
    );
    database.owner().execute(&insert).await;
}

async fn connect_live(bridge: &Served) -> EventSource {
    let mut source = bridge.connect("alice", None).await;
    until(&mut source, "tidings.caught-up").await;
    source
}

/// Asserts that a valid row arrives in time, and nothing before it.
async fn expect_next(database: &Database, source: &mut EventSource, text: &str) {
    let insert = format!("insert into notifications (user_id, text) values ('alice', '{text}')");
    database.execute(&insert).await;
    let start = Instant::now();
    assert_eq!(source.next_event().await.data, text);
    let took = start.elapsed();
    assert!(took <= LATEST, "{text} took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_delivered_do_not_stop_the_tail() {
    let database = Database::migrated().await;
    allow_everything(&database).await;
    let mut bridge = Served::start(&database, &[]).await;
    let mut alice = connect_live(&bridge).await;
    for row in OF_NOBODY {
        insert(&database, row, COUNT).await;
        expect_next(&database, &mut alice, "after").await;
    }
    for row in OF_ALICE {
        insert(&database, row, 3).await;
        expect_next(&database, &mut alice, "after").await;
    }
    for topic in ["''", "repeat('t', 300)", "E'a\\nb'"] {
        let row = format!("insert into notifications (topic, text) values ({topic}, 'text')");
        database.owner().execute(&row).await;
        expect_next(&database, &mut alice, "after").await;
    }
    let warning = bridge.until_logged("WARN", "can't be delivered").await;
    assert_eq!(
        warning["reason"], "user_id is not 1 to 255 bytes long",
        "{warning}"
    );
    assert!(warning["row"].is_i64(), "{warning}");
    let log = bridge.log().await;
    let warnings = log.iter().filter(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["message"]
            .as_str()
            .is_some_and(|message| message.contains("can't be delivered"))
    });
    // At most one warning per ten seconds.
    assert!(warnings.count() <= 2, "{log:#?}");
    assert!(
        !log.concat().contains("alice"),
        "a user's name is in {log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn undeliverable_rows_stop_neither_new_nor_returning_clients() {
    let database = Database::migrated().await;
    allow_everything(&database).await;
    let bridge = Served::start(&database, &[NONE_RECENT]).await;
    let id = connect_live(&bridge).await.last_event_id().to_owned();
    insert(&database, ["'alice'", "null", "null"], COUNT).await;
    insert(&database, ["'alice'", "'first'", "null"], 1).await;
    insert(&database, ["'alice'", "'text'", "''"], COUNT).await;
    insert(&database, ["'alice'", "'second'", "null"], 1).await;
    for last_event_id in [None, Some(&*id)] {
        let start = Instant::now();
        let mut alice = bridge.connect("alice", last_event_id).await;
        let got = until(&mut alice, "tidings.caught-up").await;
        let texts: Vec<_> = got.iter().map(|event| event.data.as_str()).collect();
        assert_eq!(texts, ["first", "second"], "{last_event_id:?}");
        let took = start.elapsed();
        assert!(took <= LATEST, "{took:?}");
        expect_next(&database, &mut alice, "after").await;
        database
            .owner()
            .execute("delete from notifications where text = 'after'")
            .await;
    }
}

/// Ids that count downwards, and times outside every calendar.
#[tokio::test(flavor = "multi_thread")]
async fn rows_with_strange_times_and_ids_are_delivered_or_skipped() {
    let database = Database::migrated().await;
    allow_everything(&database).await;
    let bridge = Served::start(&database, &["--tail-rows=2"]).await;
    let mut alice = connect_live(&bridge).await;
    for created in [
        "'infinity'",
        "'-infinity'",
        "null",
        "'4713-01-01 BC'",
        "'294276-01-01'",
    ] {
        let insert = format!(
            "insert into notifications (user_id, text, created_at, expires_at) \
             values ('alice', 'strange', {created}, 'infinity')"
        );
        database.owner().execute(&insert).await;
        let event = alice.next_event().await;
        assert_eq!(event.data, "strange", "{created}");
        assert!(row_id(&event) > 0);
    }
    let negative = "insert into notifications (id, user_id, text) overriding system value \
        select -n, 'nobody', 'negative' from generate_series(0, 9) n";
    database.owner().execute(negative).await;
    expect_next(&database, &mut alice, "after").await;
}
