//! Which topics a token or a ticket grants, and which of them a client asks for.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use crate::support::{
    bridge::{Bridge, SECRET},
    database::Database,
    event_source::{Event, EventSource, Response, get},
    row_id, until,
};

/// The text of the last row that a test sends: to a stream that was sent this, nothing before it
/// is still on its way.
const LAST: &str = "the last";

fn signed(mut claims: Value) -> String {
    claims["exp"] = (get_current_timestamp() + 600).into();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token")
}

/// A token of alice with these topics.
fn granting(topics: impl Into<Value>) -> String {
    signed(json!({ "sub": "alice", "topics": topics.into() }))
}

async fn ticket(database: &Database, user: Option<&str>, topics: &[&str]) -> String {
    let client = database.connect().await;
    let make = "select create_stream_ticket($1, '1 hour', $2)";
    let made = client.query_one(make, &[&user, &topics]).await;
    made.expect("a ticket").get(0)
}

async fn ask(bridge: &Bridge, query: &str, token: Option<&str>) -> Response {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer
        .iter()
        .map(|bearer| ("Authorization", bearer.as_str()))
        .collect();
    let answer = get(bridge.address(), &format!("/stream{query}"), &headers).await;
    answer.expect("an answer")
}

/// A stream that is live, and what it has sent until then.
async fn open(bridge: &Bridge, query: &str, token: Option<&str>) -> (EventSource, Vec<Event>) {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer
        .iter()
        .map(|bearer| ("Authorization", bearer.as_str()))
        .collect();
    let mut source =
        EventSource::open(bridge.address(), &format!("/stream{query}"), &headers).await;
    let before = until(&mut source, "tidings.caught-up").await;
    (source, before)
}

async fn send(database: &Database, topic: &str, text: &str) {
    let client = database.connect().await;
    let send = "select send_to_topic($1, $2)";
    client
        .query_one(send, &[&topic, &text])
        .await
        .expect("a row");
}

/// The texts that arrive, up to the last row.
async fn texts(source: &mut EventSource) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let event = source.next_event().await;
        if event.data == LAST {
            return texts;
        }
        if !event.name.starts_with("tidings.") {
            texts.push(event.data);
        }
    }
}

/// What a stream reports of its topics before its first row.
fn report(events: &[Event]) -> Option<Value> {
    let report = events.iter().find(|event| event.name == "tidings.topics")?;
    Some(serde_json::from_str(&report.data).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_no_short_list_of_names_is_rejected_and_says_why() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let names = |count: usize| -> Vec<_> { (0..count).map(|name| name.to_string()).collect() };
    let wants = "the claim topics must be an array of at most 100 texts of 1 to 255 bytes";
    for (topics, wanted) in [
        (json!(null), wants),
        (json!(true), wants),
        (json!("project:7"), wants),
        (json!({ "project:7": true }), wants),
        (json!([7]), wants),
        (json!(["project:7", null]), wants),
        (json!([["project:7"]]), wants),
        (json!([""]), wants),
        (json!(["x".repeat(256)]), wants),
        (json!(["project:7\u{0}"]), wants),
        (json!(["\u{1b}]0;x"]), wants),
        (json!(["\u{85}"]), wants),
        (json!(names(101)), wants),
        (json!(vec!["project:7"; 101]), wants),
        (json!(names(10_000)), "the token is longer than 8 KiB"),
    ] {
        let token = granting(topics.clone());
        for query in ["", "?topic=project:7"] {
            let answer = ask(&bridge, query, Some(&token)).await;
            assert_eq!(answer.status(), 401, "{topics}");
            let said = answer.text().await;
            assert!(said.contains(wanted), "{topics}: {said}");
        }
    }
    for topics in [
        json!([]),
        json!(["*"]),
        json!(["**", "project:*", "Projekt:Übung", " "]),
        json!(["project:7", "project:7"]),
        json!(names(100)),
        json!(["é".repeat(127) + "x"]),
    ] {
        let status = ask(&bridge, "", Some(&granting(topics.clone())))
            .await
            .status();
        assert_eq!(status, 200, "{topics}");
    }
    // A token is a user's, whatever it grants.
    for claims in [
        json!({ "topics": ["project:7"] }),
        json!({ "sub": null, "topics": ["project:7"] }),
        json!({ "sub": "", "topics": ["project:7"] }),
    ] {
        let status = ask(&bridge, "", Some(&signed(claims.clone())))
            .await
            .status();
        assert_eq!(status, 401, "{claims}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_is_no_topic_is_explained_to_who_is_authenticated() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let token = granting(["project:7"]);
    let long = "x".repeat(256);
    let many =
        |count: usize| -> String { (0..count).map(|name| format!("&topic={name}")).collect() };
    let name = "topic must be 1 to 255 bytes without control characters";
    for (query, wanted) in [
        ("?topic", name),
        ("?topic=", name),
        ("?topic=project:7&topic=", name),
        ("?topic=%00", name),
        ("?topic=project:7%00", name),
        ("?topic=project:7%0A", name),
        ("?topic=%C2%85", name),
        ("?topic=%1B%5D0;x", name),
        (&format!("?topic={long}"), name),
        (
            &format!("?{}", many(1_001)),
            "topic must not be repeated more than 1000 times",
        ),
    ] {
        let answer = ask(&bridge, query, Some(&token)).await;
        assert_eq!(answer.status(), 400, "{query}");
        let said = answer.text().await;
        assert!(
            said.contains(wanted) && !said.contains(['\0', '\u{1b}', '\u{85}']),
            "{said}"
        );
        assert_eq!(ask(&bridge, query, None).await.status(), 401, "{query}");
    }
    for query in [
        &format!("?{}", many(1_000)),
        "?topic=%FF",
        "?topic=%F0%9F%98%80",
        "?topics=",
    ] {
        assert_eq!(
            ask(&bridge, query, Some(&token)).await.status(),
            200,
            "{query}"
        );
    }
}

/// One that has another's name as its beginning, or differs in case, is another topic.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_grant_exactly_the_topics_that_they_name() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let own = ["project:7", "team:*", "Übung", "a b", "a%20b"];
    let token = granting(own);
    let with_user = ticket(&database, Some("bob"), &own).await;
    let alone = ticket(&database, None, &own).await;
    let (mut alice, _) = open(&bridge, "", Some(&token)).await;
    let (mut bob, _) = open(&bridge, &format!("?ticket={with_user}"), None).await;
    let (mut nobody, _) = open(&bridge, &format!("?ticket={alone}"), None).await;
    for topic in own {
        send(&database, topic, topic).await;
        for other in [
            topic.to_uppercase(),
            topic.chars().take(topic.chars().count() - 1).collect(),
            format!("{topic} "),
            format!(" {topic}"),
            format!("{topic}0"),
            format!("{topic}*"),
        ] {
            send(&database, &other, &format!("not of {topic}")).await;
        }
    }
    for other in [
        "Project:7",
        "PROJECT:7",
        "project",
        "team:1",
        "U\u{308}bung",
        "a+b",
        "**",
        "%",
    ] {
        send(&database, other, "of another topic").await;
    }
    database
        .execute(
            "select send_notification('carol', 'to carol'); select send_notification('alice', 'to alice'); \
             select send_notification('bob', 'to bob')",
        )
        .await;
    send(&database, "*", LAST).await;
    let of_topics: Vec<_> = own.map(str::to_owned).into();
    let and = |more: &str| [of_topics.clone(), vec![more.to_owned()]].concat();
    assert_eq!(texts(&mut alice).await, and("to alice"));
    assert_eq!(texts(&mut bob).await, and("to bob"));
    assert_eq!(texts(&mut nobody).await, of_topics);
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_for_a_topic_narrows_what_is_granted_and_never_widens_it() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select subscribe('alice', 'own'), subscribe('bob', 'secret')")
        .await;
    let token = granting(["project:7", "project:8", "*"]);
    let (mut all, before) = open(&bridge, "", Some(&token)).await;
    assert_eq!(report(&before), Some(json!({ "topics": 3, "refused": [] })));
    let query = "?topic=project%3A7&topic=secret&topic=Own&topic=secret&topic=project:&topic=*";
    let (mut some, before) = open(&bridge, query, Some(&token)).await;
    let refused = ["Own", "project:", "secret"];
    assert_eq!(
        report(&before),
        Some(json!({ "topics": 1, "refused": refused }))
    );
    let (mut none, before) = open(&bridge, "?topic=secret", Some(&token)).await;
    assert_eq!(
        report(&before),
        Some(json!({ "topics": 0, "refused": ["secret"] }))
    );
    for topic in ["own", "secret", "project:7", "project:8", "project:", "*"] {
        send(&database, topic, topic).await;
    }
    let last = format!("select send_notification('alice', '{LAST}')");
    database.execute(&last).await;
    assert_eq!(
        texts(&mut all).await,
        ["own", "project:7", "project:8", "*"]
    );
    assert_eq!(texts(&mut some).await, ["project:7", "*"]);
    assert_eq!(texts(&mut none).await, [""; 0]);
    // Nor after a reconnect.
    drop(none);
    for topic in ["secret", "project:7"] {
        send(&database, topic, "again").await;
    }
    let (_, before) = open(&bridge, "?topic=secret&replay=500", Some(&token)).await;
    assert!(
        before
            .iter()
            .all(|event| event.data == LAST || event.name.starts_with("tidings.")),
        "{before:?}"
    );
}

/// In a claim it is harmless: every stream has it.
#[tokio::test(flavor = "multi_thread")]
async fn the_topic_of_everyone_in_a_claim_grants_nothing_else() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let (mut stars, before) = open(&bridge, "", Some(&granting(vec!["*"; 100]))).await;
    assert_eq!(report(&before), None);
    let (mut plain, _) = open(&bridge, "", Some(&signed(json!({ "sub": "alice" })))).await;
    let (mut narrowed, _) = open(&bridge, "?topic=x", Some(&granting(["*"]))).await;
    for topic in ["project:7", "**", "*", "x"] {
        send(&database, topic, topic).await;
    }
    let last = format!("select send_notification('alice', '{LAST}')");
    database.execute(&last).await;
    assert_eq!(texts(&mut stars).await, ["*"]);
    assert_eq!(texts(&mut plain).await, ["*"]);
    assert_eq!(texts(&mut narrowed).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_one_request_add_up_unless_they_name_different_users() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let token = granting(["a", "both"]);
    let alices = ticket(&database, Some("alice"), &["b", "both"]).await;
    let alone = ticket(&database, None, &["c", "both"]).await;
    let bobs = ticket(&database, Some("bob"), &["d"]).await;
    let status = ask(&bridge, &format!("?ticket={bobs}"), Some(&token))
        .await
        .status();
    assert_eq!(status, 401);
    let other = signed(json!({ "sub": "alice", "topics": "d" }));
    let status = ask(&bridge, &format!("?ticket={alices}"), Some(&other))
        .await
        .status();
    assert_eq!(status, 401, "neither stands in for a bad one");
    let (mut two, before) = open(&bridge, &format!("?ticket={alices}"), Some(&token)).await;
    assert_eq!(report(&before), Some(json!({ "topics": 3, "refused": [] })));
    // A ticket without a user adds its topics, and leaves the user who it is.
    let query = format!("?ticket={alone}&expected_user=alice");
    let (mut with_alone, _) = open(&bridge, &query, Some(&token)).await;
    let cookie = format!("tidings_token={}", granting(["d"]));
    let bearer = format!("Bearer {token}");
    let headers = [("Cookie", cookie.as_str()), ("Authorization", &bearer)];
    let mut tokens = EventSource::open(bridge.address(), "/stream", &headers).await;
    until(&mut tokens, "tidings.caught-up").await;
    for topic in ["a", "b", "c", "d", "both"] {
        send(&database, topic, topic).await;
    }
    let last = format!("select send_notification('alice', '{LAST}')");
    database.execute(&last).await;
    assert_eq!(texts(&mut two).await, ["a", "b", "both"]);
    assert_eq!(texts(&mut with_alone).await, ["a", "c", "both"]);
    assert_eq!(texts(&mut tokens).await, ["a", "d", "both"]);
}

/// It has no rows of its own, is nobody's, and continues from its id like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_user_begins_at_the_present_and_resumes() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute(
            "select subscribe('alice', 'room:7'); select send_notification('alice', 'own'); \
             select send_to_topic('room:7', 'before'); select send_to_everyone('before')",
        )
        .await;
    let ticket = ticket(&database, None, &["room:7"]).await;
    let query = format!("?ticket={ticket}");
    let (mut source, before) = open(&bridge, &query, None).await;
    assert_eq!(report(&before), Some(json!({ "topics": 1, "refused": [] })));
    assert!(
        before
            .iter()
            .all(|event| event.name.starts_with("tidings.")),
        "{before:?}"
    );
    send(&database, "room:7", "live").await;
    let live = source.next_event().await;
    assert_eq!(live.data, "live");
    drop(source);
    bridge.until_connections(0).await;
    // It was the only stream that the row was written to.
    let sent = format!(
        "select sent from notifications where id = {}",
        row_id(&live)
    );
    database.until(&sent).await;
    send(&database, "room:8", "of another room").await;
    send(&database, "room:7", "missed").await;
    send(&database, "*", "missed by everyone").await;
    let headers = [("Last-Event-ID", live.last_event_id.as_str())];
    let path = format!("/stream{query}");
    let mut resumed = EventSource::open(bridge.address(), &path, &headers).await;
    let backlog = until(&mut resumed, "tidings.caught-up").await;
    let rows: Vec<_> = backlog
        .iter()
        .filter(|event| !event.name.starts_with("tidings."))
        .map(|event| event.data.as_str())
        .collect();
    assert_eq!(rows, ["missed", "missed by everyone"]);
    // What alice is owed is none of its concern: it acknowledged nothing of hers, and has no cursor.
    let unsent = "select count(*) from notifications where user_id is not null and not sent";
    assert_eq!(database.ids(unsent).await, [1]);
    let kept =
        "select (select count(*) from tidings_cursors) + (select count(*) from tidings_drained)";
    assert_eq!(database.owner().ids(kept).await, [0]);
    let (_, of_alice) = open(&bridge, "", Some(&signed(json!({ "sub": "alice" })))).await;
    let of_alice = of_alice.iter().map(|event| event.data.as_str());
    for text in ["own", "before", "live", "missed"] {
        assert!(of_alice.clone().any(|data| data == text), "{text}");
    }
    database.execute("delete from stream_tickets").await;
    resumed.rest().await;
}
