//! The wire format: `text/event-stream` as the HTML standard defines it.
//!
//! See <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>.
//!
//! `actix_web_lab::sse` can't write a block without data (the heartbeat's
//! `id:`) nor a second `retry:`, and encodes anew for every connection, so
//! these few lines are the bridge's own.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::{
    notification::Notification,
    position::{EventId, UnusableId},
};

/// How a connection wants its notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The text itself, one `data:` line a line. SSE can't carry CR: CR and
    /// CRLF become LF.
    #[default]
    Text,
    /// One JSON object, which keeps the text exact.
    Json,
}

/// A notification's event without its id, which differs from connection to
/// connection:
///
/// ```plain
/// event: build
/// data: Your build is green
///
/// ```
pub fn frame(notification: &Notification, format: Format) -> Bytes {
    let mut out = BytesMut::with_capacity(notification.text.len() + 64);
    if let Some(name) = &notification.event {
        put_field(&mut out, "event", name);
    }
    match format {
        Format::Text => put_data(&mut out, &notification.text),
        Format::Json => put_json(&mut out, notification),
    }
    out.put_u8(b'\n');
    out.freeze()
}

fn put_json(out: &mut BytesMut, notification: &Notification) {
    /// The contract with clients that ask for `format=json`.
    #[derive(Serialize)]
    struct Row<'a> {
        id: i64,
        event: Option<&'a str>,
        text: &'a str,
        created_at: Option<&'a str>,
    }
    let row = Row {
        id: notification.key.id,
        event: notification.event.as_deref(),
        text: &notification.text,
        created_at: notification.created_at.as_deref(),
    };
    put_json_data(out, &row);
}

/// JSON escapes line breaks, so it is always one line.
fn put_json_data(out: &mut BytesMut, value: &impl Serialize) {
    out.put_slice(b"data: ");
    let written = serde_json::to_writer((&mut *out).writer(), value);
    debug_assert!(written.is_ok(), "texts and numbers always have a JSON form");
    out.put_u8(b'\n');
}

fn put_field(out: &mut BytesMut, name: &str, value: &str) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_u8(b'\n');
}

/// One `data:` line a line. The space after the colon is part of the format
/// and protects a text's own leading space.
fn put_data(out: &mut BytesMut, text: &str) {
    let mut rest = text;
    while let Some(end) = rest.find(['\r', '\n']) {
        put_field(out, "data", &rest[..end]);
        let breaks = if rest[end..].starts_with("\r\n") {
            2
        } else {
            1
        };
        rest = &rest[end + breaks..];
    }
    put_field(out, "data", rest);
}

/// The line that begins an event: `id: 7-AQA`.
pub fn put_id_line(out: &mut BytesMut, id: &EventId<'_>) {
    put_field(out, "id", &id.to_string());
}

/// A block with an id alone. It sets `lastEventId` and fires no event.
pub fn put_id_block(out: &mut BytesMut, id: &EventId<'_>) {
    put_id_line(out, id);
    out.put_u8(b'\n');
}

/// A comment, to keep the connection alive while there is no id yet.
pub fn put_comment(out: &mut BytesMut) {
    out.put_slice(b":\n\n");
}

/// How long the client is to wait before it connects again.
pub fn put_retry(out: &mut BytesMut, delay: Duration) {
    put_retry_line(out, delay);
    out.put_u8(b'\n');
}

/// The first block of a stream that is resumed. The id is in it because, by the
/// letter of the standard, a new stream's first blank line forgets the id that
/// the client came with.
pub fn put_resumed(out: &mut BytesMut, delay: Duration, id: &EventId<'_>) {
    put_retry_line(out, delay);
    put_id_block(out, id);
}

fn put_retry_line(out: &mut BytesMut, delay: Duration) {
    put_field(out, "retry", &delay.as_millis().to_string());
}

/// All of a stream that is none: when the client is to come back, and a comment
/// that says why, which must be one line. No blank line ends it, since by the
/// letter of the standard that would make a client forget the id that it came
/// with.
pub fn put_come_back(out: &mut BytesMut, delay: Duration, why: &str) {
    put_retry_line(out, delay);
    put_field(out, "", why);
}

/// The backlog has been written; what follows is live.
pub fn put_caught_up(out: &mut BytesMut, id: &EventId<'_>, rows: u64) {
    #[derive(Serialize)]
    struct CaughtUp {
        rows: u64,
    }
    put_id_line(out, id);
    put_field(out, "event", "tidings.caught-up");
    put_json_data(out, &CaughtUp { rows });
    out.put_u8(b'\n');
}

/// The client's identity expires in so much time, and the stream ends then.
pub fn put_expiring(out: &mut BytesMut, left: Duration) {
    #[derive(Serialize)]
    struct Expiring {
        in_seconds: u64,
    }
    put_field(out, "event", "tidings.expiring");
    let in_seconds = left.as_secs_f64().round() as u64;
    put_json_data(out, &Expiring { in_seconds });
    out.put_u8(b'\n');
}

/// Why a client may have missed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "reason")]
pub enum Gap {
    /// Its id is not one that a bridge gave out; the backlog follows.
    Malformed,
    /// Its id belongs to another history of the database; the backlog follows.
    Epoch,
    /// Rows that it had not been sent may have been removed for good; what is
    /// left of them follows.
    Pruned,
}

impl From<UnusableId> for Gap {
    fn from(reason: UnusableId) -> Self {
        match reason {
            UnusableId::Malformed => Self::Malformed,
            UnusableId::Epoch => Self::Epoch,
        }
    }
}

/// The client may have missed rows.
pub fn put_gap(out: &mut BytesMut, gap: Gap) {
    put_field(out, "event", "tidings.gap");
    put_json_data(out, &gap);
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{notification::Expiry, position::RowKey, snapshot::Xid};

    fn notification(event: Option<&str>, text: &str) -> Notification {
        Notification {
            key: RowKey { xid: Xid(1), id: 7 },
            event: event.map(String::from),
            text: text.to_owned(),
            created_at: Some("2026-11-22T11:33:21.123456Z".to_owned()),
            expires: Expiry::Never,
        }
    }

    #[test]
    fn a_text_takes_one_data_line_a_line() {
        for (text, wire) in [
            ("Your build is green", "data: Your build is green\n\n"),
            ("", "data: \n\n"),
            ("a\nb", "data: a\ndata: b\n\n"),
            ("a\r\nb\rc", "data: a\ndata: b\ndata: c\n\n"),
            ("a\n", "data: a\ndata: \n\n"),
            ("\n\r\n", "data: \ndata: \ndata: \n\n"),
            (" b: c", "data:  b: c\n\n"),
            ("\u{1f600}", "data: \u{1f600}\n\n"),
        ] {
            assert_eq!(
                frame(&notification(None, text), Format::Text),
                wire,
                "{text:?}"
            );
        }
    }

    #[test]
    fn json_keeps_a_text_exact_on_one_line() {
        let wire = frame(&notification(Some("build"), "a\r\nb\"c"), Format::Json);
        assert_eq!(
            wire,
            concat!(
                "event: build\n",
                r#"data: {"id":7,"event":"build","text":"a\r\nb\"c","created_at":"2026-11-22T11:33:21.123456Z"}"#,
                "\n\n"
            )
        );
    }

    #[test]
    fn the_bridges_own_events_are_json_under_names_of_their_own() {
        let mut out = BytesMut::new();
        put_gap(&mut out, Gap::Malformed);
        put_retry(&mut out, Duration::from_millis(1_500));
        assert_eq!(
            out,
            "event: tidings.gap\ndata: {\"reason\":\"malformed\"}\n\nretry: 1500\n\n"
        );
    }
}
