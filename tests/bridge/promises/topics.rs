//! The promises for topics: one row reaches all members, live, on their return and exactly, and
//! nobody else.

use std::time::{Duration, Instant};

use crate::support::{
    bridge::Bridge,
    database::Database,
    event_source::{Event, EventSource},
    until,
};

/// How long a change of a membership may take to have an effect.
const EFFECT: Duration = Duration::from_secs(1);

/// Each row has been written to a stream, which knows it.
const ALL_SENT: &str = "select bool_and(sent) from notifications";

async fn texts_until(source: &mut EventSource, name: &str) -> Vec<String> {
    texts(until(source, name).await)
}

fn texts(events: Vec<Event>) -> Vec<String> {
    let rows = events.into_iter().filter(|event| event.name == "message");
    rows.map(|event| event.data).collect()
}

/// The texts up to this one, which is the last.
async fn texts_up_to(source: &mut EventSource, last: &str) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.last().is_none_or(|text| text != last) {
        let event = source.next_event().await;
        if event.name == "message" {
            texts.push(event.data);
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_a_topic_reaches_its_members_and_everyone_s_reaches_everyone() {
    let database = Database::migrated().await;
    database.execute("select subscribe('alice', 'team')").await;
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect_live("alice").await;
    let mut bob = bridge.connect_live("bob").await;
    database
        .execute(
            "select send_to_topic('team', 'team 1'), send_to_topic('Team', 'another'), \
             send_to_everyone('all'), send_notification('alice', 'own'), \
             send_notification('bob', 'bob''s')",
        )
        .await;
    assert_eq!(
        texts_up_to(&mut alice, "own").await,
        ["team 1", "all", "own"]
    );
    assert_eq!(texts_up_to(&mut bob, "bob's").await, ["all", "bob's"]);
    // The row of the topic that reached anyone is marked.
    database
        .until("select count(*) = 4 from notifications where sent")
        .await;
    let unsent = "select id from notifications where not sent and topic = 'Team'";
    assert_eq!(database.ids(unsent).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_and_leaving_take_effect_while_connected() {
    let database = Database::migrated().await;
    // The poll of every second is switched off: the doorbell announces the change.
    let bridge = Bridge::start_with(&database, &["--safety-poll=1h"]).await;
    let mut alice = bridge.connect_live("alice").await;
    let mut other = bridge.connect_live("alice").await;
    for round in 0..3 {
        let begin = Instant::now();
        database
            .execute(&format!("select send_to_topic('team', 'before {round}')"))
            .await;
        // Rows of the transaction that subscribes her are hers.
        database
            .execute(&format!(
                "select send_to_topic('team', 'with {round}'), subscribe('alice', 'team')"
            ))
            .await;
        database
            .execute(&format!("select send_to_topic('team', 'member {round}')"))
            .await;
        for source in [&mut alice, &mut other] {
            let (with, member) = (format!("with {round}"), format!("member {round}"));
            assert_eq!(texts_up_to(source, &member).await, [with, member]);
        }
        assert!(begin.elapsed() < EFFECT);
        database
            .execute(&format!(
                "select unsubscribe('alice', 'team'); \
                 select send_to_topic('team', 'after {round}'); \
                 select send_notification('alice', 'own {round}')"
            ))
            .await;
        for source in [&mut alice, &mut other] {
            let own = format!("own {round}");
            assert_eq!(texts_up_to(source, &own).await, [own]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_who_returns_receives_what_was_missed_and_nothing_from_before_joining() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select send_to_topic('team', 'too early'), send_to_everyone('too early')")
        .await;
    database.execute("select subscribe('alice', 'team')").await;
    let mut alice = bridge.connect_live("alice").await;
    database
        .execute("select send_to_topic('team', 'live')")
        .await;
    texts_up_to(&mut alice, "live").await;
    let id = alice.last_event_id().to_owned();
    drop(alice);
    database
        .execute(
            "select send_to_topic('team', 'missed'), send_to_everyone('missed too'); \
             select send_to_topic('club', 'too early')",
        )
        .await;
    database.execute("select subscribe('alice', 'club')").await;
    database
        .execute("select send_to_topic('club', 'club')")
        .await;
    let mut alice = bridge.resume("alice", &id).await;
    let missed = texts_until(&mut alice, "tidings.caught-up").await;
    assert_eq!(missed, ["missed", "missed too", "club"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_id_rows_of_topics_begin_where_the_last_stream_ended() {
    let database = Database::migrated().await;
    database
        .execute("select subscribe('alice', 'team'); select send_to_topic('team', 'first')")
        .await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    // Without a cursor, they begin when the user joined.
    let mut alice = bridge.connect("alice").await;
    let first = texts_until(&mut alice, "tidings.caught-up").await;
    assert_eq!(first, ["first"]);
    for round in 0..3 {
        // A stream that ends before it knows that its last rows were written repeats them.
        database.until(ALL_SENT).await;
        drop(alice);
        bridge.until_connections(0).await;
        if round == 1 {
            // Whether the cursor is stored or still waiting makes no difference.
            database
                .until("select count(*) = 1 from tidings_cursors")
                .await;
        }
        database
            .execute(&format!("select send_to_topic('team', 'missed {round}')"))
            .await;
        alice = bridge.connect("alice").await;
        let missed = texts_until(&mut alice, "tidings.caught-up").await;
        assert_eq!(missed, [format!("missed {round}")]);
    }
    database.until(ALL_SENT).await;
    drop(alice);
    bridge.stop().await;
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect("alice").await;
    let again = texts_until(&mut alice, "tidings.caught-up").await;
    assert_eq!(again, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_was_never_written_a_row_of_a_topic_gets_the_announcements_that_were_missed() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    // Somebody uses topics, and the bridge knows it.
    let mut bob = bridge.connect_live("bob").await;
    database
        .execute("select send_to_everyone('long ago')")
        .await;
    texts_up_to(&mut bob, "long ago").await;
    drop(bob);
    bridge.until_connections(0).await;
    let alice = bridge.connect_live("alice").await;
    drop(alice);
    bridge.until_connections(0).await;
    database.execute("select send_to_everyone('missed')").await;
    let mut alice = bridge.connect("alice").await;
    let missed = texts_until(&mut alice, "tidings.caught-up").await;
    assert_eq!(missed, ["missed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_rows_are_replayed_with_those_of_topics() {
    let database = Database::migrated().await;
    database
        .execute("select send_to_topic('team', 'too early')")
        .await;
    database.execute("select subscribe('alice', 'team')").await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    let mut alice = bridge.connect_live("alice").await;
    for n in 1..=3 {
        database
            .execute(&format!(
                "select send_to_topic('team', 'team {n}'); \
                 select send_notification('alice', 'own {n}'); select send_to_everyone('all {n}')"
            ))
            .await;
    }
    texts_up_to(&mut alice, "all 3").await;
    drop(alice);
    bridge.until_connections(0).await;
    database
        .until("select count(*) = 9 from notifications where sent")
        .await;
    for (replay, wanted) in [
        (0, &[][..]),
        (2, &["own 3", "all 3"]),
        (4, &["all 2", "team 3", "own 3", "all 3"]),
        (
            500,
            &[
                "team 1", "own 1", "all 1", "team 2", "own 2", "all 2", "team 3", "own 3", "all 3",
            ],
        ),
    ] {
        let query = format!("?replay={replay}");
        let mut alice = bridge.connect_with("alice", &query, &[]).await;
        let replayed = texts_until(&mut alice, "tidings.caught-up").await;
        assert_eq!(replayed, wanted, "replay={replay}");
        drop(alice);
        bridge.until_connections(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_topics_is_told_first_which_are_refused() {
    let database = Database::migrated().await;
    database
        .execute("select subscribe('alice', 'team'), subscribe('alice', 'club')")
        .await;
    let bridge = Bridge::start(&database).await;
    let query = "?topic=team&topic=secret&topic=Team";
    let mut alice = bridge.connect_with("alice", query, &[]).await;
    let told = until(&mut alice, "tidings.topics").await;
    assert_eq!(texts(told), [""; 0]);
    until(&mut alice, "tidings.caught-up").await;
    database
        .execute(
            "select send_to_topic('club', 'no'), send_to_topic('secret', 'no'), \
             send_to_everyone('no'), send_to_topic('team', 'yes')",
        )
        .await;
    assert_eq!(texts_up_to(&mut alice, "yes").await, ["yes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrowed_stream_moves_no_cursor() {
    let database = Database::migrated().await;
    database
        .execute("select subscribe('alice', 'team'), subscribe('alice', 'club')")
        .await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    let mut narrowed = bridge.connect_with("alice", "?topic=team", &[]).await;
    until(&mut narrowed, "tidings.caught-up").await;
    database
        .execute("select send_to_topic('club', 'club'), send_to_topic('team', 'team')")
        .await;
    assert_eq!(texts_up_to(&mut narrowed, "team").await, ["team"]);
    drop(narrowed);
    bridge.until_connections(0).await;
    let mut alice = bridge.connect("alice").await;
    let all = texts_until(&mut alice, "tidings.caught-up").await;
    assert_eq!(all, ["club", "team"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_one_that_continues_a_narrowed_stream_with_all_topics() {
    let database = Database::migrated().await;
    database
        .execute("select subscribe('alice', 'team'), subscribe('alice', 'club')")
        .await;
    let bridge = Bridge::start_with(&database, &["--settle=0s"]).await;
    let mut stream = bridge.connect_with("alice", "?topic=team", &[]).await;
    until(&mut stream, "tidings.caught-up").await;
    database
        .execute("select send_to_topic('club', 'club'), send_to_topic('team', 'team')")
        .await;
    assert_eq!(texts_up_to(&mut stream, "team").await, ["team"]);
    for later in ["later", "still later"] {
        let id = stream.last_event_id().to_owned();
        drop(stream);
        bridge.until_connections(0).await;
        let header = [("Last-Event-ID", id.as_str())];
        stream = bridge.connect_with("alice", "", &header).await;
        until(&mut stream, "tidings.caught-up").await;
        let send = format!("select send_to_topic('club', '{later}')");
        database.execute(&send).await;
        assert_eq!(texts_up_to(&mut stream, later).await, [later]);
    }
    drop(stream);
    bridge.until_connections(0).await;
    let mut alice = bridge.connect("alice").await;
    let all = texts_until(&mut alice, "tidings.caught-up").await;
    assert_eq!(all, ["club", "team", "later", "still later"]);
}
