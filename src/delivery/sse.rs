//! The wire format: `text/event-stream`, as defined by the HTML standard.
//!
//! See <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>.
//!
//! `actix_web_lab::sse` can't write a block without data (most heartbeats) or a second
//! `retry:`, puts the id before the data, and encodes each event anew for every
//! connection. Therefore the bridge has its own encoder.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use crate::domain::{
    notification::Notification,
    position::{EventId, UnusableId},
};

/// The content type of a stream. It is always UTF-8; without a charset, clients may guess
/// another one (Python's `requests` assumes Latin-1).
pub const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";

/// The format of a connection's notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The text itself, one `data:` line per line. SSE can't carry CR, so CR and CRLF
    /// become LF.
    #[default]
    Text,
    /// One JSON object, which preserves the text exactly.
    Json,
}

/// Bytes of a text that are encoded at once. Each may become up to seven bytes: a line
/// break is encoded as `\ndata: `.
const PIECE_BYTES: usize = 2 << 10;

/// A notification's event without its id, which differs between connections and follows
/// as the last line ([`put_id`]):
///
/// ```plain
/// event: build
/// data: Your build is green
/// ```
pub fn frame(notification: &Notification, format: Format) -> Bytes {
    let mut out = BytesMut::with_capacity(notification.text.len() + 64);
    let rest = put_frame(&mut out, notification, format, 0, usize::MAX);
    debug_assert!(rest.is_none(), "nothing limits it");
    out.freeze()
}

/// Appends the [`frame`] of a notification to `out`: from byte `from` of its text on,
/// until `out` has grown to `limit` bytes. Returns the byte at which to continue if the
/// frame isn't complete. A text is never encoded as a whole, because that may take seven
/// times its size.
pub fn put_frame(
    out: &mut BytesMut,
    notification: &Notification,
    format: Format,
    mut from: usize,
    limit: usize,
) -> Option<usize> {
    let text = &notification.text;
    if from == 0 {
        if let Some(name) = &notification.event {
            put_field(out, "event", name);
        }
        out.put_slice(b"data: ");
        if let Format::Json = format {
            out.put_slice(br#"{"id":"#);
            put_json(out, &notification.key.id);
            out.put_slice(br#","event":"#);
            put_json(out, &notification.event);
            out.put_slice(br#","text":""#);
        }
    }
    while from < text.len() {
        // If nothing of the text was written, `from` would still be 0, and the head would
        // be written again.
        if from > 0 && out.len() >= limit {
            return Some(from);
        }
        from = match format {
            Format::Text => put_lines(out, text, from),
            Format::Json => put_escaped(out, text, from),
        };
    }
    if let Format::Json = format {
        out.put_slice(br#"","created_at":"#);
        put_json(out, &notification.created_at);
        if let Some(reference) = &notification.reference {
            out.put_slice(br#","ref":"#);
            put_json(out, reference);
        }
        if let Some(topic) = &notification.topic {
            out.put_slice(br#","topic":"#);
            put_json(out, topic.as_str());
        }
        out.put_u8(b'}');
    }
    out.put_u8(b'\n');
    None
}

/// Appends a piece of a text, one `data:` line per line. The space after the colon is
/// part of the format and protects a leading space of the text.
fn put_lines(out: &mut BytesMut, text: &str, from: usize) -> usize {
    let text = text.as_bytes();
    let end = text.len().min(from + PIECE_BYTES);
    let mut written = from;
    while let Some(line) = text[written..end]
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'))
    {
        let line_end = written + line;
        out.put_slice(&text[written..line_end]);
        out.put_slice(b"\ndata: ");
        let breaks = if text[line_end..].starts_with(b"\r\n") {
            2
        } else {
            1
        };
        written = line_end + breaks;
        if written > end {
            return written;
        }
    }
    out.put_slice(&text[written..end]);
    end
}

/// Appends a piece of a text as the inside of a JSON string.
fn put_escaped(out: &mut BytesMut, text: &str, from: usize) -> usize {
    let end = text.floor_char_boundary(from + PIECE_BYTES);
    let before = out.len();
    put_json(out, &text[from..end]);
    // The quotes enclose the whole text, not each piece.
    out.truncate(out.len() - 1);
    out[before..].rotate_left(1);
    out.truncate(out.len() - 1);
    end
}

fn put_json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    let written = serde_json::to_writer(out.writer(), value);
    debug_assert!(written.is_ok(), "texts and numbers always have a JSON form");
}

/// Always one line, because JSON escapes line breaks.
fn put_json_data(out: &mut BytesMut, value: &impl Serialize) {
    out.put_slice(b"data: ");
    put_json(out, value);
    out.put_u8(b'\n');
}

fn put_field(out: &mut BytesMut, name: &str, value: &str) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_u8(b'\n');
}

/// Ends a block with its id and the blank line that dispatches the event:
///
/// ```plain
/// id: 7-AQA
///
/// ```
///
/// The id comes last because some clients (`eventsource` 1 and 2,
/// `@microsoft/fetch-event-source`) apply it as soon as its line is complete. If the id
/// came first and the connection broke later in the block, they would lose the event.
pub fn put_id(out: &mut BytesMut, id: &EventId<'_>) {
    put_field(out, "id", &id.to_string());
    out.put_u8(b'\n');
}

/// A comment, which keeps the connection alive while there is no id yet.
pub fn put_comment(out: &mut BytesMut) {
    out.put_slice(b":\n\n");
}

/// A block that sets the client's reconnection delay.
pub fn put_retry(out: &mut BytesMut, delay: Duration) {
    put_retry_line(out, delay);
    out.put_u8(b'\n');
}

/// Whether a stream continues from the client's last event id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// With the backlog: the client presented no id, or one that can't be used.
    Anew,
    /// After the position in the client's id.
    Resumed,
}

/// The first block with an id, before any row.
///
/// It is an event with data because Firefox and most libraries ignore the id of a block
/// without data: if their connection broke inside the first row, they would return
/// without an id. Also, according to the standard, the first blank line of a new stream
/// makes a client forget the id that it presented, so a resumed stream begins with this
/// block.
pub fn put_open(out: &mut BytesMut, begins: Begins, id: &EventId<'_>) {
    #[derive(Serialize)]
    struct Open {
        resumed: bool,
    }
    let resumed = begins == Begins::Resumed;
    put_event(out, "tidings.open", &Open { resumed });
    put_id(out, id);
}

/// Updates the position of a client that ignores the id of a block without data.
pub fn put_heartbeat(out: &mut BytesMut, id: &EventId<'_>) {
    #[derive(Serialize)]
    struct Heartbeat {}
    put_event(out, "tidings.heartbeat", &Heartbeat {});
    put_id(out, id);
}

/// One of the bridge's own events, without the blank line that dispatches it.
fn put_event(out: &mut BytesMut, name: &str, data: &impl Serialize) {
    put_field(out, "event", name);
    put_json_data(out, data);
}

/// Sets the client's reconnection delay, as the first line of a block.
pub fn put_retry_line(out: &mut BytesMut, delay: Duration) {
    put_field(out, "retry", &delay.as_millis().to_string());
}

/// The whole body of a response that only defers the client: the reconnection delay, and
/// a comment with the reason, which must be one line. No blank line ends it because,
/// according to the standard, that would make a client forget the id that it presented.
pub fn put_deferral(out: &mut BytesMut, delay: Duration, why: &str) {
    put_retry_line(out, delay);
    put_field(out, "", why);
}

/// The backlog has been written; live rows follow.
pub fn put_caught_up(out: &mut BytesMut, id: &EventId<'_>, rows: u64) {
    #[derive(Serialize)]
    struct CaughtUp {
        rows: u64,
    }
    put_event(out, "tidings.caught-up", &CaughtUp { rows });
    put_id(out, id);
}

/// The stream's topics, and those that the client asked for and may not have. It has no
/// id: it says nothing about rows.
pub fn put_topics(out: &mut BytesMut, topics: &TopicReport) {
    put_event(out, "tidings.topics", topics);
    out.put_u8(b'\n');
}

/// What a stream says about its topics, before its first row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TopicReport {
    /// How many topics the stream has, without the one that everyone has.
    pub topics: usize,
    /// The topics that the client asked for and doesn't have.
    pub refused: Vec<String>,
    /// Whether topics were left out because the user has too many.
    #[serde(rename = "truncated", skip_serializing_if = "std::ops::Not::not")]
    pub is_truncated: bool,
}

/// The client's credentials expire after `left`, and the stream ends then.
pub fn put_expiring(out: &mut BytesMut, left: Duration) {
    #[derive(Serialize)]
    struct Expiring {
        in_seconds: u64,
    }
    let in_seconds = left.as_secs_f64().round() as u64;
    put_event(out, "tidings.expiring", &Expiring { in_seconds });
    out.put_u8(b'\n');
}

/// Why a client may have missed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "reason")]
pub enum Gap {
    /// A bridge did not issue its id. The backlog follows.
    Malformed,
    /// Its id belongs to another history of the database. The backlog follows.
    Epoch,
    /// Rows that it had not been sent may have been deleted. The remaining ones follow.
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

pub fn put_gap(out: &mut BytesMut, gap: Gap) {
    put_event(out, "tidings.gap", &gap);
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{clock::Moment, notification::Expiry, position::RowKey, snapshot::Xid};

    fn notification(event: Option<&str>, text: &str) -> Notification {
        Notification {
            key: RowKey { xid: Xid(1), id: 7 },
            event: event.map(String::from),
            text: text.to_owned(),
            created_at: Some(Moment(848_662_401_123_456)),
            expires: Expiry::Never,
            reference: None,
            topic: None,
        }
    }

    #[test]
    fn a_text_takes_one_data_line_a_line() {
        for (text, wire) in [
            ("Your build is green", "data: Your build is green\n"),
            ("", "data: \n"),
            ("a\nb", "data: a\ndata: b\n"),
            ("a\r\nb\rc", "data: a\ndata: b\ndata: c\n"),
            ("a\n", "data: a\ndata: \n"),
            ("\n\r\n", "data: \ndata: \ndata: \n"),
            (" b: c", "data:  b: c\n"),
            ("\u{1f600}", "data: \u{1f600}\n"),
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
                "\n"
            )
        );
    }

    #[test]
    fn a_ref_is_the_last_field_of_json_and_not_part_of_text() {
        let notification = Notification {
            reference: Some("orders:7\"".to_owned()),
            topic: None,
            ..notification(None, "paid")
        };
        let wire = frame(&notification, Format::Json);
        assert_eq!(
            wire,
            concat!(
                r#"data: {"id":7,"event":null,"text":"paid","created_at":"2026-11-22T11:33:21.123456Z","#,
                r#""ref":"orders:7\""}"#,
                "\n"
            )
        );
        assert_eq!(frame(&notification, Format::Text), "data: paid\n");
    }

    #[test]
    fn a_frame_in_pieces_is_the_frame_and_no_piece_is_large() {
        const LIMIT: usize = 1 << 10;
        let texts = [
            String::new(),
            "x".repeat(PIECE_BYTES),
            "\r\n".repeat(PIECE_BYTES),
            // Line breaks and multi-byte characters on every boundary.
            format!("a{}", "\r\n".repeat(2 * PIECE_BYTES)),
            format!("ab{}", "\u{1f600}\"\u{1}".repeat(PIECE_BYTES)),
            "\n".repeat(10 * PIECE_BYTES),
        ];
        for text in &texts {
            for format in [Format::Text, Format::Json] {
                let notification = notification(Some("build"), text);
                let (mut whole, mut from) = (BytesMut::new(), Some(0));
                while let Some(begin) = from {
                    let mut piece = BytesMut::new();
                    from = put_frame(&mut piece, &notification, format, begin, LIMIT);
                    assert!(from.is_none_or(|from| from > begin));
                    assert!(
                        piece.len() < LIMIT + 7 * PIECE_BYTES + 200,
                        "{}",
                        piece.len()
                    );
                    whole.put_slice(&piece);
                }
                assert!(
                    whole == frame(&notification, format),
                    "{format:?} {}",
                    text.len()
                );
            }
        }
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
