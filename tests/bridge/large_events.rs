//! An event that is larger than a chunk is written in pieces. Nothing may be written between two
//! pieces: it would become part of the event.

use std::time::Duration;

use futures_util::StreamExt;
use tidings::{
    delivery::{
        mailbox::Ending,
        sse::Format,
        stream::{EventStream, Start},
    },
    domain::{identity::Identity, notification::UserId},
};
use tokio::time::{Instant, sleep_until};

use crate::support::{database::Database, streams::streams};

/// The maximum size of a text.
const TEXT: usize = 1 << 20;

/// A stream that has written part of a row of [`TEXT`] bytes, and what it has written.
async fn within_an_event(
    database: &Database,
    lifetime: Option<Duration>,
) -> (
    std::sync::Arc<tidings::delivery::stream::Streams>,
    EventStream,
    String,
) {
    database
        .execute(&format!(
            "insert into notifications (user_id, text) values ('alice', repeat('x', {TEXT}))"
        ))
        .await;
    let streams = streams(database).await;
    let identity = Identity {
        expires: lifetime.map(|lifetime| Instant::now() + lifetime),
        ..Identity::from(UserId::parse("alice").expect("a user"))
    };
    let start = Start::Backlog { replay: 0 };
    let noted = streams.hub.note();
    let mut stream = EventStream::open(&streams, &identity, noted, &start, Format::Text);
    let mut written = String::new();
    while !written.contains("data: x") {
        written += &next(&mut stream).await.expect("a chunk");
    }
    assert!(written.len() < TEXT / 2, "{}", written.len());
    (streams, stream, written)
}

async fn next(stream: &mut EventStream) -> Option<String> {
    let chunk = stream.next().await?.expect("bytes");
    Some(String::from_utf8(chunk.to_vec()).expect("text"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_in_the_middle_of_an_event_leaves_it_incomplete() {
    let database = Database::migrated().await;
    let (streams, mut stream, mut written) = within_an_event(&database, None).await;
    streams.hub.end_all(Ending::Draining);
    while let Some(more) = next(&mut stream).await {
        written += &more;
    }
    let (_, event) = written.split_once("data: x").expect("the event");
    // A client drops an event without a final blank line, and receives it again later.
    assert!(
        event.bytes().all(|byte| byte == b'x'),
        "{:?}",
        &event[event.len() - 40..]
    );
    assert!(event.len() < TEXT - 1, "{}", event.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_that_falls_into_an_event_follows_it() {
    let database = Database::migrated().await;
    let lifetime = Duration::from_secs(4);
    let began = Instant::now();
    let (_streams, mut stream, mut written) = within_an_event(&database, Some(lifetime)).await;
    // The client is warned when half of the lifetime is over.
    sleep_until(began + lifetime * 5 / 8).await;
    while !written.contains("event: tidings.expiring") {
        written += &next(&mut stream).await.expect("a warning");
    }
    let (before, _) = written
        .split_once("event: tidings.expiring")
        .expect("a warning");
    let text = format!("data: {}\nid: 1-", "x".repeat(TEXT));
    assert!(before.contains(&text), "{:?}", &before[before.len() - 80..]);
    assert!(
        before.ends_with("\n\n"),
        "{:?}",
        &before[before.len() - 80..]
    );
}
