//! What the tests use: the real bridge, a real PostgreSQL, and a client that shares no code with
//! the server.

pub mod account;
pub mod bridge;
pub mod browser;
pub mod carrier;
pub mod database;
pub mod deployment;
pub mod dev;
pub mod event_source;
pub mod files;
pub mod frozen;
pub mod key_pair;
pub mod key_server;
pub mod nats;
pub mod page;
pub mod pooler;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod standby;
pub mod streams;
pub mod tls;
pub mod wire;

use std::{collections::BTreeSet, time::Duration};

use event_source::{Event, EventSource, Item};

/// How long a test waits for something that must happen. Only a failing test reaches this limit.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Limits that no test reaches by accident: all clients connect from one address, and some tests
/// open thousands.
const ROOMY: [&str; 3] = [
    "--max-connections=15000",
    "--max-connections-per-address=15000",
    "--connection-rate=1000000",
];

/// The given settings, plus the values of [`ROOMY`] that they don't set.
pub fn with_room<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    let name = |setting: &str| setting.split('=').next().map(str::to_owned);
    let is_given = |wanted: &str| settings.iter().any(|given| name(given) == name(wanted));
    let room = ROOMY.into_iter().filter(|setting| !is_given(setting));
    room.chain(settings.iter().copied()).collect()
}

/// The event that carries the client's position before any row.
pub async fn opening(source: &mut EventSource) -> Event {
    loop {
        match source.next_item().await {
            Ok(Item::Event(event)) => {
                assert_eq!(event.name, "tidings.open");
                return event;
            }
            Ok(_) => {}
            Err(end) => panic!("no opening: {end:?}"),
        }
    }
}

/// Reads up to the first event with this name and returns the events before it.
pub async fn until(source: &mut EventSource, name: &str) -> Vec<Event> {
    let mut before = Vec::new();
    loop {
        let event = source.next_event().await;
        if event.name == name {
            return before;
        }
        before.push(event);
    }
}

/// Checks that the next event reports a gap with this reason.
pub async fn expect_gap(source: &mut EventSource, reason: &str) {
    let gap = source.next_event().await;
    assert_eq!(gap.name, "tidings.gap");
    assert_eq!(gap.data, format!(r#"{{"reason":"{reason}"}}"#));
}

/// The row id in an event's id.
pub fn row_id(event: &Event) -> i64 {
    let row = event.last_event_id.split('-').next().unwrap_or_default();
    row.parse()
        .unwrap_or_else(|_| panic!("no row in {event:?}"))
}

/// Reads until `count` rows have arrived and returns their ids in order.
pub async fn rows(source: &mut EventSource, count: usize) -> Vec<i64> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let event = source.next_event().await;
        if !event.name.starts_with("tidings.") {
            ids.push(row_id(&event));
        }
    }
    ids
}

/// The ids as a set. Panics if an id occurs twice.
pub fn no_repeats(ids: &[i64]) -> BTreeSet<i64> {
    let set: BTreeSet<i64> = ids.iter().copied().collect();
    assert_eq!(set.len(), ids.len(), "a row came twice: {ids:?}");
    set
}
