//! How many clients are admitted, and what the rejected ones receive.

use serde_json::Value;
use tokio::time::timeout;

use crate::support::{
    PATIENCE,
    bridge::{Bridge, token},
    database::Database,
    event_source::{End, EventSource, Item, Response, get},
    process::{Served, refusal},
    row_id, rows, until,
};

/// A client that accepts error statuses, at this address behind a proxy.
async fn ask(bridge: &Bridge, user: &str, address: &str) -> Response {
    let bearer = format!("Bearer {}", token(user));
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Accept", "text/event-stream"),
        ("X-Forwarded-For", address),
    ];
    get(bridge.address(), "/stream?errors=status", &headers)
        .await
        .expect("an answer")
}

/// A browser's `EventSource`, which sends a cookie and nothing else.
async fn event_source(bridge: &Bridge, user: &str) -> EventSource {
    let cookie = format!("tidings_token={}", token(user));
    EventSource::open(bridge.address(), "/stream", &[("Cookie", &cookie)]).await
}

async fn expect_refusal(answer: Response, status: u16) {
    assert_eq!(answer.status(), status);
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    let seconds = answer.header("retry-after").expect("when to come back");
    let seconds: u64 = seconds.parse().expect("a number");
    assert!((15..=60).contains(&seconds), "{seconds}");
    let problem: Value = serde_json::from_str(&answer.text().await).expect("JSON");
    assert_eq!(problem["status"], status);
}

/// A deferral: a 200 response with the retry delay and a comment with the reason, which then ends.
async fn expect_deferral(mut source: EventSource, why: &str) {
    let (items, end) = source.rest().await;
    let [Item::Retry(delay), Item::Comment(comment)] = &items[..] else {
        panic!("not a deferral: {items:?}")
    };
    assert!((15_000..=60_000).contains(delay), "{delay}");
    assert!(comment.contains(why), "{comment}");
    assert_eq!(end, End::Clean);
}

/// Libraries send a token and give up for good on any status other than 200.
#[tokio::test(flavor = "multi_thread")]
async fn a_library_with_a_token_is_told_to_retry_and_one_that_wants_the_status_gets_it() {
    let database = Database::migrated().await;
    let settings = ["--max-connections-per-user=1"];
    let bridge = Bridge::start_with(&database, &settings).await;
    let _first = bridge.connect_live("alice").await;
    let bearer = format!("Bearer {}", token("alice"));
    for accept in ["text/event-stream", "text/event-stream, */*"] {
        let headers = [("Authorization", bearer.as_str()), ("Accept", accept)];
        for query in ["", "?errors=retry"] {
            let path = format!("/stream{query}");
            let source = EventSource::open(bridge.address(), &path, &headers).await;
            expect_deferral(source, "too many streams").await;
        }
        let answer = get(bridge.address(), "/stream?errors=status", &headers).await;
        expect_refusal(answer.expect("an answer"), 429).await;
    }
    // A program that doesn't ask for an event stream.
    let headers = [("Authorization", bearer.as_str()), ("Accept", "*/*")];
    let answer = get(bridge.address(), "/stream", &headers).await;
    expect_refusal(answer.expect("an answer"), 429).await;
}

/// Retries until a request is admitted.
async fn until_let_in(bridge: &Bridge, user: &str, address: &str) -> EventSource {
    let asking = async {
        loop {
            let answer = ask(bridge, user, address).await;
            if answer.status() == 200 {
                return answer.into_events().await;
            }
        }
    };
    timeout(PATIENCE, asking).await.expect("a place")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_turns_away_whoever_exceeds_it_and_nobody_else() {
    let database = Database::migrated().await;
    let limits = [
        "--trusted-proxies=127.0.0.1",
        "--max-connections=5",
        "--max-connections-per-user=2",
        "--max-connections-per-address=3",
    ];
    let bridge = Bridge::start_with(&database, &limits).await;
    let first = ask(&bridge, "alice", "192.0.2.1").await.into_events().await;
    let _second = ask(&bridge, "alice", "192.0.2.2").await.into_events().await;
    expect_refusal(ask(&bridge, "alice", "192.0.2.3").await, 429).await;
    expect_deferral(event_source(&bridge, "alice").await, "close some tabs").await;
    assert_eq!(bridge.refused("user").await, 2);

    let _third = ask(&bridge, "bob", "192.0.2.1").await.into_events().await;
    let _fourth = ask(&bridge, "carol", "192.0.2.1").await.into_events().await;
    expect_refusal(ask(&bridge, "dave", "192.0.2.1").await, 429).await;
    assert_eq!(bridge.refused("address").await, 1);

    let mut fifth = ask(&bridge, "dave", "192.0.2.4").await.into_events().await;
    expect_refusal(ask(&bridge, "erin", "192.0.2.5").await, 503).await;
    expect_deferral(event_source(&bridge, "erin").await, "too many streams").await;
    assert_eq!(bridge.refused("connections").await, 2);
    let metrics = bridge.admin("/metrics").await;
    assert_eq!(
        metrics.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let metrics = metrics.text().await;
    assert!(
        metrics.lines().any(|line| line == "tidings_connections 5"),
        "{metrics}"
    );

    // The open connections are not affected, and closing one makes room.
    database
        .execute("select send_notification('dave', 'still here')")
        .await;
    assert_eq!(rows(&mut fifth, 1).await.len(), 1);
    drop(first);
    let _sixth = until_let_in(&bridge, "alice", "192.0.2.1").await;
    expect_refusal(ask(&bridge, "erin", "192.0.2.5").await, 503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_often_waits_and_others_do_not() {
    let database = Database::migrated().await;
    let settings = ["--trusted-proxies=127.0.0.1", "--connection-rate=1"];
    let bridge = Bridge::start_with(&database, &settings).await;
    // An IPv6 client can use another address of its network for each request.
    let mut asked = 0;
    let refusal = loop {
        let answer = ask(&bridge, "alice", &format!("2001:db8::{asked:x}")).await;
        if answer.status() != 200 {
            break answer;
        }
        asked += 1;
        assert!(asked < 1_000, "never turned away");
    };
    assert!(asked >= 10, "turned away after {asked}");
    expect_refusal(refusal, 429).await;
    assert!(bridge.refused("rate").await >= 1);
    // The rate limit applies before authentication.
    let headers = [("X-Forwarded-For", "2001:db8::")];
    let stranger = get(bridge.address(), "/stream", &headers).await;
    expect_refusal(stranger.expect("an answer"), 429).await;
    assert_eq!(ask(&bridge, "alice", "2001:db8:0:1::1").await.status(), 200);
    until_let_in(&bridge, "alice", "2001:db8::").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_stream_ends_where_the_next_one_begins() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--max-stream-age=1s"]).await;
    let mut source = bridge.connect_live("alice").await;
    let mut got = Vec::new();
    for round in 1..=3_i64 {
        // One row while the stream is open, one while no stream is.
        for (when, id) in [("live", 2 * round - 1), ("away", 2 * round)] {
            database
                .execute(&format!("select send_notification('alice', '{when}')"))
                .await;
            if when == "live" {
                let (items, end) = source.rest().await;
                assert_eq!(end, End::Clean);
                assert!(matches!(items.last(), Some(Item::Retry(_))), "{items:?}");
                got.extend(items.iter().filter_map(|item| match item {
                    Item::Event(event) if event.name == "message" => Some(row_id(event)),
                    _ => None,
                }));
                assert_eq!(got.last(), Some(&id), "{items:?}");
            }
        }
        bridge.until_connections(0).await;
        source = bridge.resume("alice", source.last_event_id()).await;
        let missed = until(&mut source, "tidings.caught-up").await;
        got.extend(missed.iter().map(row_id));
    }
    assert_eq!(got, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_the_system_cannot_keep_are_logged() {
    let database = Database::empty().await;
    let settings = ["--max-connections=1000000000", "--migrate=never"];
    let said = refusal(&database, &settings).await;
    assert!(said.contains("open files"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_clients_are_logged() {
    let database = Database::migrated().await;
    let mut bridge = Served::start(&database, &["--max-connections-per-user=1"]).await;
    let _first = bridge.connect("alice", None).await;
    for _ in 0..2 {
        let bearer = format!("Bearer {}", token("alice"));
        let second = get(bridge.address(), "/stream", &[("Authorization", &bearer)]).await;
        assert_eq!(second.expect("an answer").status(), 429);
    }
    bridge
        .until_logged("WARN", "TIDINGS_MAX_CONNECTIONS_PER_USER")
        .await;
    assert_eq!(bridge.refused("user").await, 2);
}
