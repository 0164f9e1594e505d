//! The event stream format as specified in the HTML standard (9.2.6, "Interpreting an event
//! stream"), but without the byte order mark, which the bridge never sends.

use std::mem;

/// An event as a page's script receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
    pub(crate) last_event_id: String,
}

/// An item of an event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Event(Event),
    /// The id set by a block without data.
    Id(String),
    /// A new reconnection time in milliseconds.
    Retry(u64),
    /// A comment: everything after the colon.
    Comment(String),
}

#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Whether the last byte was a CR, so that a following LF belongs to it.
    after_cr: bool,
    line: Vec<u8>,
    data: String,
    event_type: String,
    /// The id set by the current block, if any.
    new_id: Option<String>,
    /// The id set by earlier blocks; empty if none set one.
    id: String,
}

impl Decoder {
    /// Returns the item that this byte completes. A byte never completes two.
    pub(super) fn push(&mut self, byte: u8) -> Option<Item> {
        let after_cr = mem::replace(&mut self.after_cr, byte == b'\r');
        match byte {
            b'\n' if after_cr => None,
            b'\n' | b'\r' => self.end_line(),
            _ => {
                self.line.push(byte);
                None
            }
        }
    }

    /// The id set by the blocks so far; empty if none set one.
    pub(super) fn last_event_id(&self) -> &str {
        &self.id
    }

    fn end_line(&mut self) -> Option<Item> {
        let line = mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            return self.end_block();
        }
        match line.split_once(':') {
            Some(("", comment)) => Some(Item::Comment(comment.to_owned())),
            Some((field, value)) => self.set(field, value.strip_prefix(' ').unwrap_or(value)),
            None => self.set(&line, ""),
        }
    }

    fn set(&mut self, field: &str, value: &str) -> Option<Item> {
        match field {
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.event_type),
            "id" if !value.contains('\0') => self.new_id = Some(value.to_owned()),
            // `parse` alone would accept a sign.
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                return value.parse().ok().map(Item::Retry);
            }
            _ => {}
        }
        None
    }

    /// Dispatches the event at a blank line, as the standard specifies.
    fn end_block(&mut self) -> Option<Item> {
        let data = mem::take(&mut self.data);
        let event_type = mem::take(&mut self.event_type);
        let new_id = self.new_id.take();
        if let Some(id) = &new_id {
            self.id.clone_from(id);
        }
        let Some(data) = data.strip_suffix('\n') else {
            return new_id.map(Item::Id);
        };
        Some(Item::Event(Event {
            name: if event_type.is_empty() {
                "message".to_owned()
            } else {
                event_type
            },
            data: data.to_owned(),
            last_event_id: self.id.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(stream: impl AsRef<[u8]>) -> Vec<Item> {
        let mut decoder = Decoder::default();
        let bytes = stream.as_ref().iter();
        bytes.filter_map(|&byte| decoder.push(byte)).collect()
    }

    fn event(name: &str, data: &str, last_event_id: &str) -> Item {
        Item::Event(Event {
            name: name.to_owned(),
            data: data.to_owned(),
            last_event_id: last_event_id.to_owned(),
        })
    }

    fn message(data: &str) -> Item {
        event("message", data, "")
    }

    fn comment(text: &str) -> Item {
        Item::Comment(text.to_owned())
    }

    #[test]
    fn joins_the_lines_of_data() {
        assert_eq!(
            decoded("data: YHOO\ndata: +2\ndata: 10\n\n"),
            [message("YHOO\n+2\n10")]
        );
    }

    #[test]
    fn reads_the_standards_example_of_ids() {
        let stream = ": test stream\n\n\
            data: first event\nid: 1\n\n\
            data:second event\nid\n\n\
            data:  third event\n\n";
        let items = [
            comment(" test stream"),
            event("message", "first event", "1"),
            message("second event"),
            message(" third event"),
        ];
        assert_eq!(decoded(stream), items);
        assert_eq!(
            decoded(&stream[..stream.len() - 1]),
            items[..3],
            "the end is no blank line"
        );
    }

    #[test]
    fn tells_empty_data_from_none() {
        assert_eq!(
            decoded("data\n\ndata\ndata\n\ndata:"),
            [message(""), message("\n")]
        );
        assert_eq!(decoded("event: nothing\n\ndata: x\n\n"), [message("x")]);
    }

    #[test]
    fn removes_one_space_only() {
        assert_eq!(
            decoded("data:test\n\ndata: test\n\n"),
            [message("test"), message("test")]
        );
        assert_eq!(decoded("data:  x:y \n\n"), [message(" x:y ")]);
    }

    #[test]
    fn names_events() {
        let stream = "event: add\ndata: 1\n\ndata: 2\n\nevent: a\nevent:\ndata: 3\n\n";
        assert_eq!(
            decoded(stream),
            [event("add", "1", ""), message("2"), message("3")]
        );
    }

    #[test]
    fn takes_every_kind_of_line_end() {
        let expected = [comment("c"), message("1\n2"), message("3")];
        for end in ["\n", "\r", "\r\n"] {
            let stream = ":c|data:1|data:2||data:3||".replace('|', end);
            assert_eq!(decoded(stream), expected, "{end:?}");
        }
        assert_eq!(decoded("data:1\r\ndata:2\r\n\rdata:3\n\r\n"), expected[1..]);
    }

    #[test]
    fn replaces_what_is_no_utf_8() {
        assert_eq!(
            decoded(b"data:\xC3\xA9\xE2\x82\n\n"),
            [message("\u{E9}\u{FFFD}")]
        );
    }

    #[test]
    fn keeps_the_id_until_another_comes() {
        let stream = "id: 1\ndata: a\n\ndata: b\n\nid: 2\n\nid: 3\0\ndata: c\n\n";
        let items = [
            event("message", "a", "1"),
            event("message", "b", "1"),
            Item::Id("2".to_owned()),
            event("message", "c", "2"),
        ];
        assert_eq!(decoded(stream), items);
    }

    #[test]
    fn takes_an_id_only_at_the_blank_line() {
        let mut decoder = Decoder::default();
        let mut push = |text: &str| {
            let items = text.bytes().filter_map(|byte| decoder.push(byte)).collect();
            (items, decoder.last_event_id().to_owned())
        };
        assert_eq!(push("id: 8\n"), (vec![], String::new()));
        assert_eq!(push("\n"), (vec![Item::Id("8".to_owned())], "8".to_owned()));
    }

    #[test]
    fn takes_only_digits_for_a_retry() {
        let stream = "retry: 1500\nretry: +5\nretry: 1.5\nretry:\nretry: 99999999999999999999\n";
        assert_eq!(decoded(stream), [Item::Retry(1500)]);
    }

    #[test]
    fn ignores_fields_it_does_not_know() {
        assert_eq!(decoded("Data: x\n data: x\ndata : x\nfoo\n\n"), []);
    }
}
