//! Tickets: created in SQL, presented in the URL, revoked in SQL. What they deliver of topics is
//! in `topic_credentials`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tidings::{
    app::Parts,
    config::ConfigError,
    delivery::{
        hub::Reading,
        sse::Format,
        stream::{EventStream, Start},
    },
    domain::{
        identity::Disconnection,
        notification::{Addressee, Expiry, Notification, UserId},
        position::RowKey,
        snapshot::{Snapshot, Xid},
    },
};

use crate::support::{
    bridge::{Bridge, options_without_secret, token},
    database::Database,
    event_source::{End, EventSource, Response, get},
    proxy::Network,
    streams::{streams, until_caught_up},
    until,
};

/// A ticket for an hour.
async fn ticket(database: &Database, user: &str) -> String {
    let client = database.connect().await;
    let make = "select create_stream_ticket($1)";
    let made = client.query_one(make, &[&user]).await;
    made.expect("a ticket").get(0)
}

/// A ticket for an hour without a user, for one topic.
async fn userless_ticket(database: &Database) -> String {
    let client = database.connect().await;
    let make = "select create_stream_ticket(null, '1 hour', topics => '{room:7}')";
    let made = client.query_one(make, &[]).await;
    made.expect("a ticket").get(0)
}

async fn open(bridge: &Bridge, ticket: &str) -> EventSource {
    let path = format!("/stream?ticket={ticket}");
    let mut source = EventSource::open(bridge.address(), &path, &[]).await;
    until(&mut source, "tidings.caught-up").await;
    source
}

async fn ask(bridge: &Bridge, ticket: &str, headers: &[(&str, &str)]) -> Response {
    let path = format!("/stream?ticket={ticket}");
    let response = get(bridge.address(), &path, headers).await;
    response.expect("an answer")
}

async fn refused(bridge: &Bridge, ticket: &str) {
    let response = ask(bridge, ticket, &[]).await;
    assert_eq!(response.status(), 401, "{ticket}");
    let said = response.text().await;
    assert!(said.contains("get a new one"), "{said}");
}

/// Checks that the stream receives what is sent to its user now, and did not end before.
async fn is_open(database: &Database, source: &mut EventSource, user: &str) {
    let send = format!("select send_notification('{user}', 'still here')");
    database.execute(&send).await;
    assert_eq!(source.next_event().await.data, "still here");
}

async fn ends(source: &mut EventSource) {
    assert_eq!(source.rest().await.1, End::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_users_stream_as_often_as_it_is_shown() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let ticket = ticket(&database, "alice").await;
    for _ in 0..2 {
        let mut source = open(&bridge, &ticket).await;
        database
            .execute("select send_notification('bob', 'not for alice')")
            .await;
        is_open(&database, &mut source, "alice").await;
    }
    // With a token of the same user it is still alice.
    let bearer = format!("Bearer {}", token("alice"));
    let response = ask(&bridge, &ticket, &[("Authorization", &bearer)]).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_keeps_a_hash_from_which_no_ticket_can_be_made() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let (one, another) = (
        ticket(&database, "alice").await,
        ticket(&database, "alice").await,
    );
    assert_ne!(one, another);
    assert_eq!(one.len(), 64);
    let client = database.owner().connect().await;
    let rows = client.query(
        "select stream_tickets::text, encode(hash, 'hex') from stream_tickets",
        &[],
    );
    for row in rows.await.expect("the table") {
        let (all, hash): (String, String) = (row.get(0), row.get(1));
        assert!(!all.contains(&one) && !all.contains(&another), "{all}");
        refused(&bridge, &hash).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_none_is_refused() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let good = ticket(&database, "alice").await;
    database
        .owner()
        .execute(
            "insert into stream_tickets (hash, user_id, created_at, expires_at) \
             values (sha256(repeat('a', 64)::bytea), 'alice', now() - interval '2 hours', now() - interval '1 second')",
        )
        .await;
    refused(&bridge, &"a".repeat(64)).await;
    for bad in [
        "",
        "0",
        &"0".repeat(64),
        &"0".repeat(65),
        &good[1..],
        &good
            .to_uppercase()
            .replace(|c: char| c.is_ascii_digit(), "A"),
        &format!("{good}0"),
        &format!("%20{good}"),
        &format!("{}%00", &good[1..]),
        "'%20or%20true--",
        &"x".repeat(10_000),
    ] {
        refused(&bridge, bad).await;
    }
    // A repeated parameter is rejected.
    let response = ask(&bridge, &format!("{good}&ticket={good}"), &[]).await;
    assert_eq!(response.status(), 401);
    is_open(&database, &mut open(&bridge, &good).await, "alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_and_a_token_must_agree_and_neither_stands_in_for_a_bad_one() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let alices = ticket(&database, "alice").await;
    let bobs = format!("tidings_token={}", token("bob"));
    let alice = format!("Bearer {}", token("alice"));
    let unknown = "0".repeat(64);
    for (ticket, header) in [
        (&alices, ("Cookie", bobs.as_str())),
        (&alices, ("Cookie", "tidings_token=x")),
        (&alices, ("Authorization", "Bearer x")),
        (&unknown, ("Authorization", alice.as_str())),
    ] {
        assert_eq!(ask(&bridge, ticket, &[header]).await.status(), 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_a_ticket_away_ends_the_streams_that_it_opened_and_no_others() {
    let database = Database::migrated().await;
    let (bridge, other_bridge) = (
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    );
    let mut with_token = bridge.connect_live("alice").await;
    for take_away in [
        "delete from stream_tickets where hash = sha256('TICKET')",
        "update stream_tickets set expires_at = created_at + interval '1 microsecond' \
         where hash = sha256('TICKET')",
    ] {
        let (gone, kept) = (
            ticket(&database, "alice").await,
            ticket(&database, "alice").await,
        );
        let mut ending = open(&bridge, &gone).await;
        let mut ending_elsewhere = open(&other_bridge, &gone).await;
        let mut staying = open(&bridge, &kept).await;
        let take_away = take_away.replace("TICKET", &gone);
        database.owner().execute(&take_away).await;
        ends(&mut ending).await;
        ends(&mut ending_elsewhere).await;
        refused(&bridge, &gone).await;
        refused(&other_bridge, &gone).await;
        is_open(&database, &mut staying, "alice").await;
        assert_eq!(with_token.next_event().await.data, "still here");
    }
    let last = ticket(&database, "alice").await;
    let mut ending = open(&bridge, &last).await;
    database.owner().execute("truncate stream_tickets").await;
    ends(&mut ending).await;
    refused(&bridge, &last).await;
    is_open(&database, &mut with_token, "alice").await;
}

/// The ticket's row is deleted in a transaction that began before others that have already been
/// read.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_is_taken_away_in_a_long_transaction_ends_its_streams_too() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let (gone, quick) = (
        ticket(&database, "alice").await,
        ticket(&database, "alice").await,
    );
    let mut ending = open(&bridge, &gone).await;
    let mut ending_first = open(&bridge, &quick).await;
    let slow = database.connect().await;
    slow.batch_execute(&format!(
        "begin; delete from stream_tickets where hash = sha256('{gone}')"
    ))
    .await
    .expect("deleted");
    database
        .execute(&format!(
            "delete from stream_tickets where hash = sha256('{quick}')"
        ))
        .await;
    ends(&mut ending_first).await;
    is_open(&database, &mut ending, "alice").await;
    slow.batch_execute("commit").await.expect("committed");
    ends(&mut ending).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnect_user_ends_a_users_streams_and_takes_the_tickets_away() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let ticket = ticket(&database, "7").await;
    let mut with_ticket = open(&bridge, &ticket).await;
    let mut with_token = bridge.connect_live("7").await;
    let mut other = bridge.connect_live("bob").await;
    database.execute("select disconnect_user('7')").await;
    ends(&mut with_ticket).await;
    ends(&mut with_token).await;
    refused(&bridge, &ticket).await;
    is_open(&database, &mut other, "bob").await;
    // A token stays valid until it expires. A user's name may be a number.
    let mut again = bridge.connect_live("7").await;
    database.execute("select disconnect_user(7::bigint)").await;
    ends(&mut again).await;
}

/// The streams of a ticket without a user are those of nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn taking_away_a_ticket_without_a_user_ends_its_streams_and_no_others() {
    let database = Database::migrated().await;
    let (bridge, other_bridge) = (
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    );
    let users = ticket(&database, "alice").await;
    let mut with_users = open(&bridge, &users).await;
    let mut with_token = bridge.connect_live("alice").await;
    let kept = userless_ticket(&database).await;
    let mut staying = open(&bridge, &kept).await;
    for take_away in [
        "delete from stream_tickets where hash = sha256('TICKET')",
        "update stream_tickets set topics = '{room:8}', expires_at = created_at + interval '1 microsecond' \
         where hash = sha256('TICKET')",
    ] {
        let gone = userless_ticket(&database).await;
        let mut ending = [open(&bridge, &gone).await, open(&other_bridge, &gone).await];
        // It adds topics to a token, whose stream is a user's.
        let path = format!("/stream?ticket={gone}");
        let bearer = format!("Bearer {}", token("bob"));
        let headers = [("Authorization", bearer.as_str())];
        let mut with_both = EventSource::open(bridge.address(), &path, &headers).await;
        until(&mut with_both, "tidings.caught-up").await;
        is_open(&database, &mut with_both, "bob").await;
        database
            .owner()
            .execute(&take_away.replace("TICKET", &gone))
            .await;
        for stream in &mut ending {
            ends(stream).await;
        }
        ends(&mut with_both).await;
        refused(&bridge, &gone).await;
        is_open(&database, &mut with_users, "alice").await;
        assert_eq!(with_token.next_event().await.data, "still here");
    }
    database.execute("select disconnect_user('alice')").await;
    ends(&mut with_users).await;
    ends(&mut with_token).await;
    assert_eq!(bridge.connections(), 1);
    database.execute("select disconnect_everyone()").await;
    ends(&mut staying).await;
    refused(&bridge, &kept).await;
}

/// More at once than the trigger records one by one.
#[tokio::test(flavor = "multi_thread")]
async fn taking_away_very_many_tickets_without_a_user_ends_their_streams() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut with_token = bridge.connect_live("alice").await;
    let one = userless_ticket(&database).await;
    let mut ending = open(&bridge, &one).await;
    database
        .execute(
            "select create_stream_ticket(null, '1 hour', topics => '{x}') from generate_series(1, 1500)",
        )
        .await;
    database.execute("delete from stream_tickets").await;
    ends(&mut ending).await;
    refused(&bridge, &one).await;
    is_open(&database, &mut with_token, "alice").await;
    let count = "select count(*) from tidings_disconnections";
    assert_eq!(database.owner().ids(count).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_without_a_user_counts_as_a_user_of_its_own() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--max-connections-per-user=1"]).await;
    let (one, another) = (
        userless_ticket(&database).await,
        userless_ticket(&database).await,
    );
    let _stream = open(&bridge, &one).await;
    assert_eq!(ask(&bridge, &one, &[]).await.status(), 429);
    let _stream = open(&bridge, &another).await;
    let _stream = bridge.connect_live("alice").await;
    // The page was made for a user.
    let path = format!("{one}&expected_user=alice");
    assert_eq!(ask(&bridge, &path, &[]).await.status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_expires_ends_its_stream_after_a_warning() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let client = database.connect().await;
    let made = client
        .query_one("select create_stream_ticket('alice', '8 seconds')", &[])
        .await
        .expect("a ticket");
    let ticket: String = made.get(0);
    let mut source = open(&bridge, &ticket).await;
    is_open(&database, &mut source, "alice").await;
    let warning = source.next_event().await;
    assert_eq!(warning.name, "tidings.expiring");
    assert!(
        ["1", "2", "3", "4"]
            .map(|n| format!(r#"{{"in_seconds":{n}}}"#))
            .contains(&warning.data),
        "{warning:?}"
    );
    ends(&mut source).await;
    refused(&bridge, &ticket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_without_a_user_or_a_reasonable_life_are_not_made() {
    let database = Database::migrated().await;
    let client = database.connect().await;
    let newest = database.server_version().await;
    let mut bad = vec![
        "null, '1 hour'",
        "'', '1 hour'",
        "repeat('x', 256), '1 hour'",
        "'alice', null",
        "'alice', '0'",
        "'alice', '-1 second'",
        "'alice', '1 month -31 days'",
        "'alice', '24 hours 1 microsecond'",
        "'alice', '1 day 1 second'",
        "'alice', '100 years'",
        "null, '1 hour', null",
        "null, '1 hour', '{}'",
        "'', '1 hour', '{x}'",
        "repeat('x', 256), '1 hour', '{x}'",
        "null, '25 hours', '{x}'",
        "null, null, '{x}'",
        "'alice', '1 hour', '{NULL}'",
        "'alice', '1 hour', '{\"\"}'",
        "'alice', '1 hour', '{*}'",
        "null, '1 hour', '{x,*}'",
        "'alice', '1 hour', array[repeat('x', 256)]",
        r"'alice', '1 hour', array[E'x\n']",
        r"'alice', '1 hour', array[E'x\u0085']",
        "'alice', '1 hour', array(select n::text from generate_series(1, 101) n)",
    ];
    if newest >= 17_00_00 {
        bad.extend(["'alice', 'infinity'", "'alice', '-infinity'"]);
    }
    for arguments in bad {
        let make = format!("select create_stream_ticket({arguments})");
        let made = client.batch_execute(&make).await;
        let error = made.expect_err(arguments);
        let error = error.as_db_error().expect(arguments);
        assert!(
            error.message().starts_with("a ticket "),
            "{arguments}: {error}"
        );
    }
    for arguments in [
        "'alice'",
        "'alice', '24 hours'",
        "'alice', '1 day'",
        "'alice', '1 second'",
        "'alice', '1 hour', null",
        "'alice', '1 hour', '{}'",
        "'alice', '1 hour', '{project:7,**,Project:7}'",
        "'alice', '1 hour', array(select n::text from generate_series(1, 100) n)",
        "'alice', '1 hour', array[repeat('x', 255)]",
        "null, '1 hour', topics => '{{a,b},{b,c}}'",
        "user_id => 'alice', ttl => '1 hour', topics => '{x}'",
    ] {
        database
            .execute(&format!("select create_stream_ticket({arguments})"))
            .await;
    }
    let kept = "select coalesce(topics::text, '-') from stream_tickets \
                where cardinality(topics) is distinct from 100 and topics <> array[repeat('x', 255)] \
                order by topics collate \"C\"";
    let rows = client.query(kept, &[]).await.expect("the table");
    let kept: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(kept, ["{**,Project:7,project:7}", "{a,b,c}", "{x}"]);
    let error = client.batch_execute("select disconnect_user(null::text)");
    let error = error.await.expect_err("no user").to_string();
    assert!(error.contains("db error"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_tickets_are_removed_by_the_bridges() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "insert into stream_tickets (hash, user_id, created_at, expires_at) \
             select sha256(n::text::bytea), 'alice', now() - interval '2 hours', now() - interval '1 hour' \
             from generate_series(1, 25) as n",
        )
        .await;
    // Creating a ticket doesn't remove them: in an application's transaction, that could conflict
    // with other transactions.
    let good = ticket(&database, "alice").await;
    let count = "select count(*) from stream_tickets";
    assert_eq!(database.ids(count).await, [26]);
    let bridge = Bridge::start(&database).await;
    let begin = Instant::now();
    database
        .until("select count(*) = 1 from stream_tickets")
        .await;
    assert!(begin.elapsed() < Duration::from_secs(30));
    let path = format!("/stream?ticket={good}");
    let mut source = EventSource::open(bridge.address(), &path, &[]).await;
    until(&mut source, "tidings.caught-up").await;
    // They had expired, so there was nothing to disconnect.
    let count = "select count(*) from tidings_disconnections";
    assert_eq!(database.ids(count).await, [0]);
}

/// A page that can't send a cookie has the ticket in its URL. Its origin must be listed all the
/// same: the ticket may have been exposed to it by mistake.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_on_a_page_that_is_not_listed_opens_nothing() {
    let database = Database::migrated().await;
    let listed = "--cors-origins=https://app.example.org";
    let bridge = Bridge::start_with(&database, &[listed]).await;
    let ticket = ticket(&database, "alice").await;
    let elsewhere = [("Origin", "https://evil.example.org")];
    assert_eq!(ask(&bridge, &ticket, &elsewhere).await.status(), 403);
    let answer = ask(&bridge, &ticket, &[("Origin", "https://app.example.org")]).await;
    assert_eq!(answer.status(), 200);
    let allowed = answer.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example.org"));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_a_ticket_is_asked_to_come_back() {
    let database = Database::migrated().await;
    let (network, over_network) = database.over_network().await;
    let bridge = Bridge::start(&over_network).await;
    let ticket = ticket(&database, "alice").await;
    network.set(Network::Refuse);
    network.reset();
    let answer = ask(&bridge, &ticket, &[]).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.header("retry-after").is_some());
    let browser = ask(&bridge, &ticket, &[("Accept", "text/event-stream")]).await;
    assert_eq!(browser.status(), 200);
    assert!(browser.text().await.starts_with("retry: "));
    network.set(Network::Pass);
    bridge.until_ready_is(200).await;
    is_open(&database, &mut open(&bridge, &ticket).await, "alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_alone_let_users_in_only_where_they_are_turned_on() {
    let database = Database::migrated().await;
    let ticket = ticket(&database, "alice").await;
    let none = Parts::of(&options_without_secret(&database, &[]));
    assert!(matches!(none.err(), Some(ConfigError::NoAuthentication)));
    let bridge = Bridge::start_as(&options_without_secret(&database, &["--tickets=on"])).await;
    is_open(&database, &mut open(&bridge, &ticket).await, "alice").await;
    let bridge = Bridge::start_with(&database, &["--tickets=off"]).await;
    refused(&bridge, &ticket).await;
}

/// A user who was logged out receives nothing more, not even rows that were about to be written.
#[tokio::test(flavor = "multi_thread")]
async fn what_still_waits_for_a_stream_is_not_sent_once_it_is_to_end() {
    let database = Database::migrated().await;
    let streams = streams(&database).await;
    let (hub, user) = (&streams.hub, UserId::parse("alice").expect("a user"));
    let start = Start::Backlog { replay: 0 };
    let identity = user.clone().into();
    let mut stream = EventStream::open(&streams, &identity, hub.note(), &start, Format::Text);
    until_caught_up(&mut stream).await;
    let waiting = Notification {
        key: RowKey {
            xid: Xid(1 << 40),
            id: 1,
        },
        event: None,
        text: "too late".to_owned(),
        created_at: None,
        expires: Expiry::Never,
        reference: None,
        topic: None,
    };
    hub.publish(Reading {
        changes: Vec::new(),
        notifications: vec![(Addressee::User(user.clone()), waiting)],
        snapshot: Arc::new(Snapshot::new(Xid(2 << 40), Vec::new())),
        unread: Arc::default(),
        tail: (*hub.tail()).clone(),
    });
    hub.disconnect(&[Disconnection::User(user)]);
    let mut body = Vec::new();
    while let Some(Ok(chunk)) = stream.next().await {
        body.extend_from_slice(&chunk);
    }
    let body = String::from_utf8(body).expect("text");
    assert!(
        body.starts_with("retry: ") && !body.contains("too late"),
        "{body}"
    );
}
