//! How long an identity is valid, and how a browser learns of its end.

use crate::support::{
    bridge::{Bridge, token_that_ends_in},
    database::Database,
    event_source::{End, EventSource, Item, get},
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token_after_a_warning_and_is_refused_from_then_on() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let cookie = format!("tidings_token={}", token_that_ends_in(8));
    let headers = [("Cookie", cookie.as_str())];
    let mut source = EventSource::open(bridge.address(), "/stream", &headers).await;
    until(&mut source, "tidings.caught-up").await;
    let warning = source.next_event().await;
    assert_eq!(warning.name, "tidings.expiring");
    let in_seconds: serde_json::Value = serde_json::from_str(&warning.data).expect("JSON");
    let in_seconds = in_seconds["in_seconds"].as_u64().expect("a number");
    assert!((1..=4).contains(&in_seconds), "{in_seconds}");
    assert_eq!(source.rest().await.1, End::Clean);
    let refused = get(bridge.address(), "/stream", &headers).await;
    let refused = refused.expect("an answer");
    assert_eq!(refused.status(), 401);
    assert!(refused.text().await.contains("expired"));
}

/// There is always something to send, because the client doesn't read: 40 MB, far more than all
/// buffers in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_never_idle_ends_with_its_token_too() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    database
        .execute(
            "insert into notifications (user_id, text) \
             select 'alice', repeat('x', 10000) from generate_series(1, 4000)",
        )
        .await;
    let bearer = format!("Bearer {}", token_that_ends_in(8));
    let headers = [("Authorization", bearer.as_str())];
    let mut source = EventSource::open(bridge.address(), "/stream", &headers).await;
    while get(bridge.address(), "/stream", &headers)
        .await
        .expect("an answer")
        .status()
        != 401
    {}
    let (items, end) = source.rest().await;
    // It is cut in the middle of a row: there was no room for a warning or a reason.
    assert_eq!(end, End::Cut);
    let events = items.iter().filter_map(|item| match item {
        Item::Event(event) => Some(event.name.as_str()),
        _ => None,
    });
    let (own, rows): (Vec<_>, Vec<_>) = events.partition(|name| name.starts_with("tidings."));
    assert!(
        own.iter()
            .all(|name| ["tidings.open", "tidings.expiring"].contains(name)),
        "{own:?}"
    );
    assert!((1..4_000).contains(&rows.len()), "{}", rows.len());
}

/// The earlier expiry counts.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_tokens_the_one_that_ends_first_ends_the_stream() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let bearer = format!("Bearer {}", token_that_ends_in(3_600));
    let cookie = format!("tidings_token={}", token_that_ends_in(8));
    let headers = [("Authorization", bearer.as_str()), ("Cookie", &cookie)];
    let mut source = EventSource::open(bridge.address(), "/stream", &headers).await;
    until(&mut source, "tidings.expiring").await;
    assert_eq!(source.rest().await.1, End::Clean);
}
