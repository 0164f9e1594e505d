//! Parses what passes through a proxy towards a client: the bytes of an HTTP response,
//! and the events in them.
//!
//! It determines where a response may be cut, and counts the rows that were forwarded
//! completely. It shares no code with the bridge.

use std::collections::HashSet;

/// The number of bytes of a line that are examined; the relevant fields are shorter.
const LINE_BYTES: usize = 256;

/// Where a connection is to be cut.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// After this many bytes of the response head, or at its end.
    Head(usize),
    /// After this many bytes of the body, including its chunk sizes.
    Body(usize),
    /// In an id line, after this many of its bytes.
    Id { skip: usize, bytes: usize },
    /// In a chunk size line, after this many of its digits.
    Size { skip: usize, digits: usize },
    /// At the end of a line, so between two lines of an event or between two events.
    Line { skip: usize },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Head,
    /// In a chunk size line.
    Size,
    /// With this many bytes left in the chunk.
    Chunk(usize),
    /// In the line break after a chunk.
    ChunkEnd,
    /// In a body without chunks.
    Plain,
}

/// Parses the responses of one connection, byte by byte.
#[derive(Debug)]
pub struct Wire {
    phase: Phase,
    head: Vec<u8>,
    body_bytes: usize,
    size: String,
    sizes: usize,
    /// The first bytes of the current line.
    line: Vec<u8>,
    ids: usize,
    lines: usize,
    block: Block,
    /// The rows that passed, in order.
    pub rows: Vec<i64>,
    /// Rows that passed twice on this connection.
    pub repeats: Vec<i64>,
    seen: HashSet<i64>,
    /// The statuses of responses other than 200.
    pub refusals: Vec<u16>,
    /// The number of responses that only said when to reconnect, and ended.
    pub deferrals: usize,
}

/// The current event.
#[derive(Debug, Default)]
struct Block {
    is_data: bool,
    is_control: bool,
    row: Option<i64>,
}

impl Wire {
    pub fn new() -> Self {
        Self {
            phase: Phase::Head,
            head: Vec::new(),
            body_bytes: 0,
            size: String::new(),
            sizes: 0,
            line: Vec::new(),
            ids: 0,
            lines: 0,
            block: Block::default(),
            rows: Vec::new(),
            repeats: Vec::new(),
            seen: HashSet::new(),
            refusals: Vec::new(),
            deferrals: 0,
        }
    }

    /// Prepares for another response on the connection, to the next request.
    pub fn restart(&mut self) {
        self.phase = Phase::Head;
        self.head.clear();
        self.body_bytes = 0;
        (self.sizes, self.ids, self.lines) = (0, 0, 0);
        self.size.clear();
        self.line.clear();
        self.block = Block::default();
        self.seen.clear();
    }

    /// Reads until the aim is hit, and returns how many bytes that took.
    pub fn read(&mut self, bytes: &[u8], aim: Option<Aim>) -> Option<usize> {
        for (index, &byte) in bytes.iter().enumerate() {
            self.read_byte(byte);
            if aim.is_some_and(|aim| self.hits(aim)) {
                return Some(index + 1);
            }
        }
        None
    }

    /// The row that has passed except for the empty line that ends its event.
    pub fn unended(&self) -> Option<i64> {
        let is_row = self.block.is_data && !self.block.is_control && self.line.is_empty();
        self.block.row.filter(|_| is_row)
    }

    fn hits(&self, aim: Aim) -> bool {
        let in_body = self.phase != Phase::Head;
        match aim {
            Aim::Head(bytes) => in_body || self.head.len() >= bytes,
            Aim::Body(bytes) => in_body && self.body_bytes >= bytes,
            Aim::Id { skip, bytes } => {
                let in_line = self.line.starts_with(b"id:") && self.line.len() >= bytes;
                self.ids > skip && (in_line || self.ids > skip + 1)
            }
            Aim::Size { skip, digits } => {
                self.sizes > skip && (self.size.len() >= digits || self.phase != Phase::Size)
            }
            Aim::Line { skip } => self.lines > skip,
        }
    }

    fn read_byte(&mut self, byte: u8) {
        if self.phase != Phase::Head {
            self.body_bytes += 1;
        }
        match self.phase {
            Phase::Head => {
                self.head.push(byte);
                if self.head.ends_with(b"\r\n\r\n") {
                    self.end_head();
                }
            }
            Phase::Size => match byte {
                b'\r' => {}
                b'\n' => {
                    let size = usize::from_str_radix(&self.size, 16);
                    let size = size.unwrap_or_else(|_| panic!("a chunk of {:?}", self.size));
                    self.phase = if size == 0 {
                        Phase::ChunkEnd
                    } else {
                        Phase::Chunk(size)
                    };
                    self.size.clear();
                }
                digit => {
                    if self.size.is_empty() {
                        self.sizes += 1;
                    }
                    self.size.push(char::from(digit));
                }
            },
            Phase::Chunk(left) => {
                self.phase = if left == 1 {
                    Phase::ChunkEnd
                } else {
                    Phase::Chunk(left - 1)
                };
                self.read_text(byte);
            }
            Phase::ChunkEnd => {
                if byte == b'\n' {
                    self.phase = Phase::Size;
                }
            }
            Phase::Plain => self.read_text(byte),
        }
    }

    fn end_head(&mut self) {
        let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        match status {
            Some(200) => {}
            status => self.refusals.push(status.unwrap_or(0)),
        }
        let is_chunked = head.contains("transfer-encoding: chunked");
        if status == Some(200) && !is_chunked {
            self.deferrals += 1;
        }
        self.phase = if is_chunked {
            Phase::Size
        } else {
            Phase::Plain
        };
    }

    fn read_text(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE_BYTES {
                self.line.push(byte);
                if self.line == b"id:" {
                    self.ids += 1;
                }
            }
            return;
        }
        self.lines += 1;
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        match line.split_once(": ").unwrap_or((&line, "")) {
            ("", "") => self.end_block(),
            ("data", _) => self.block.is_data = true,
            ("event", name) => self.block.is_control = name.starts_with("tidings."),
            ("id", id) => {
                let row = id.split('-').next();
                self.block.row = row.and_then(|row| row.parse().ok());
            }
            _ => {}
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        if let Some(row) = block.row.filter(|_| block.is_data && !block.is_control) {
            self.rows.push(row);
            if !self.seen.insert(row) {
                self.repeats.push(row);
            }
        }
    }
}

/// Shortens the `retry:` of responses, so that a thousand reconnects don't take an
/// hour. The length stays the same, so that chunk sizes remain correct.
#[derive(Debug, Default)]
pub struct Hurry {
    /// How many bytes at the start of the line match [`Self::FIELD`].
    matched: Option<usize>,
    digits: usize,
}

impl Hurry {
    const FIELD: &[u8] = b"retry: ";

    /// The bytes that may pass. Digits are held back until the next byte is known.
    pub fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 8);
        for &byte in bytes {
            if self.matched == Some(Self::FIELD.len()) && byte.is_ascii_digit() {
                self.digits += 1;
                continue;
            }
            if self.digits > 0 {
                // 50 ms, written as 0050.
                let digits = std::mem::take(&mut self.digits);
                out.extend(
                    (1..=digits)
                        .rev()
                        .map(|at| if at == 2 { b'5' } else { b'0' }),
                );
            }
            self.matched = match self.matched {
                _ if byte == b'\n' => Some(0),
                Some(at) if Self::FIELD.get(at) == Some(&byte) => Some(at + 1),
                _ => None,
            };
            out.push(byte);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(body: &str) -> Vec<u8> {
        let size = body.len();
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n")
            .into_bytes()
    }

    #[test]
    fn rows_are_counted_that_passed_as_a_whole_and_control_events_are_not() {
        let body = "event: tidings.open\ndata: {}\nid: 6-A\n\n\
            data: a\nid: 7-A\n\nid: 8-A\n\ndata: b\nid: 7-B\n\ndata: c\nid: 9-A\n";
        let mut wire = Wire::new();
        assert_eq!(wire.read(&response(body), None), None);
        assert_eq!(wire.rows, [7, 7]);
        assert_eq!(wire.repeats, [7]);
        assert_eq!(wire.unended(), Some(9));
    }

    #[test]
    fn each_aim_is_hit_where_it_says() {
        let text = |aim| {
            let bytes = response("data: a\nid: 7-A\n\n");
            let end = Wire::new().read(&bytes, Some(aim)).expect("a hit");
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        assert_eq!(text(Aim::Head(5)), "HTTP/");
        assert!(text(Aim::Head(500)).ends_with("\r\n\r\n"));
        assert!(text(Aim::Body(6)).ends_with("\r\n11\r\nda"));
        assert!(text(Aim::Id { skip: 0, bytes: 5 }).ends_with("id: 7"));
        assert!(text(Aim::Size { skip: 0, digits: 1 }).ends_with("\r\n1"));
        assert!(text(Aim::Line { skip: 1 }).ends_with("id: 7-A\n"));
        assert!(text(Aim::Line { skip: 2 }).ends_with("id: 7-A\n\n"));
    }

    #[test]
    fn retry_becomes_short_wherever_the_bytes_are_split_and_keeps_its_length() {
        let text = b"HTTP\r\n\r\nretry: 3127\n:\n\ndata: retry: 3127\n\nretry: 900\n";
        for at in 0..text.len() {
            let mut hurry = Hurry::default();
            let mut out = hurry.pass(&text[..at]);
            out.extend(hurry.pass(&text[at..]));
            assert_eq!(
                String::from_utf8_lossy(&out),
                "HTTP\r\n\r\nretry: 0050\n:\n\ndata: retry: 3127\n\nretry: 050\n"
            );
        }
    }
}
