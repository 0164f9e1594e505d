//! An incremental parser for Server-Sent Events responses.
//!
//! It shares no code with the bridge, and accepts what other servers send: chunked or
//! not, lines that end in LF or CRLF.

/// An event without its id, which is in [`EventStream::last_id`].
pub struct Event<'a> {
    /// Empty for "message".
    pub name: &'a [u8],
    /// Its lines, joined by LF.
    pub data: &'a [u8],
}

/// Why a response is not an event stream.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It was rejected.
    #[error("the answer was {0:?}, not 200")]
    Status(String),
    /// A head that never ends, or a chunk size that isn't a number.
    #[error("the answer is no HTTP")]
    Malformed,
}

/// More than any server measured here sends before its first event.
const HEAD_BYTES: usize = 16 << 10;
/// Sixteen hexadecimal digits, an extension, CR.
const SIZE_BYTES: usize = 256;

/// The parser's position in the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In the head, which is kept until it is complete.
    Head,
    /// In a body without chunks: everything that follows.
    Plain,
    /// In a line with the size of a chunk.
    Size,
    /// In a chunk with this many bytes left.
    Chunk(usize),
    /// In the line break after a chunk.
    Gap,
    /// After the last chunk.
    End,
}

/// One response, and the last id of all responses so far.
#[derive(Debug)]
pub struct EventStream {
    stage: Stage,
    /// An incomplete head or chunk size.
    held: Vec<u8>,
    /// An incomplete line of the body.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    /// The id of the incomplete event.
    id: Vec<u8>,
    last_id: Vec<u8>,
}

impl Default for EventStream {
    fn default() -> Self {
        Self {
            stage: Stage::Head,
            held: Vec::new(),
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            id: Vec::new(),
            last_id: Vec::new(),
        }
    }
}

impl EventStream {
    /// The id to reconnect with, if there is one.
    pub fn last_id(&self) -> Option<&str> {
        let id = std::str::from_utf8(&self.last_id).ok()?;
        (!id.is_empty()).then_some(id)
    }

    /// Prepares for another response to the same client, after it reconnects.
    pub fn restart(&mut self) {
        *self = Self {
            last_id: std::mem::take(&mut self.last_id),
            ..Self::default()
        };
    }

    /// Whether the response has begun with a successful status.
    pub fn has_begun(&self) -> bool {
        self.stage != Stage::Head
    }

    /// Parses the next bytes, and passes on the events that they complete.
    ///
    /// # Errors
    ///
    /// [`Unreadable`]; reading can't continue after that.
    pub fn read(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), Unreadable> {
        while !bytes.is_empty() {
            match self.stage {
                Stage::Head => bytes = self.read_head(bytes)?,
                Stage::Plain => {
                    self.read_body(bytes, &mut on_event);
                    bytes = &[];
                }
                Stage::Size => bytes = self.read_size(bytes)?,
                Stage::Chunk(left) => {
                    let (now, later) = bytes.split_at(left.min(bytes.len()));
                    self.read_body(now, &mut on_event);
                    self.stage = match left - now.len() {
                        0 => Stage::Gap,
                        left => Stage::Chunk(left),
                    };
                    bytes = later;
                }
                Stage::Gap => match bytes.iter().position(|&byte| byte == b'\n') {
                    Some(end) => {
                        self.stage = Stage::Size;
                        bytes = &bytes[end + 1..];
                    }
                    None => bytes = &[],
                },
                Stage::End => bytes = &[],
            }
        }
        Ok(())
    }

    /// Returns the bytes after the head, if that is complete.
    fn read_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Unreadable> {
        let before = self.held.len();
        self.held.extend_from_slice(bytes);
        let Some(end) = self.held.windows(4).position(|part| part == b"\r\n\r\n") else {
            return match self.held.len() {
                ..HEAD_BYTES => Ok(&[]),
                _ => Err(Unreadable::Malformed),
            };
        };
        let head = String::from_utf8_lossy(&self.held[..end]).to_ascii_lowercase();
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(Unreadable::Status(status.to_owned()));
        }
        let is_chunked =
            |line: &str| line.starts_with("transfer-encoding:") && line.contains("chunked");
        self.stage = match head.lines().any(is_chunked) {
            true => Stage::Size,
            false => Stage::Plain,
        };
        self.held = Vec::new();
        Ok(&bytes[end + 4 - before..])
    }

    /// Returns the bytes after the size of a chunk, if that is complete.
    fn read_size<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Unreadable> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        self.held
            .extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        let Some(end) = end else {
            return match self.held.len() {
                ..SIZE_BYTES => Ok(&[]),
                _ => Err(Unreadable::Malformed),
            };
        };
        let size = std::str::from_utf8(&self.held)
            .ok()
            .and_then(|line| line.split(';').next())
            .and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok())
            .ok_or(Unreadable::Malformed)?;
        self.held.clear();
        self.stage = match size {
            0 => Stage::End,
            size => Stage::Chunk(size),
        };
        Ok(&bytes[end + 1..])
    }

    fn read_body(&mut self, mut bytes: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            if self.line.is_empty() {
                self.take_line(&bytes[..end], on_event);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&bytes[..end]);
                self.take_line(&line, on_event);
                line.clear();
                self.line = line;
            }
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
    }

    fn take_line(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if !self.data.is_empty() {
                on_event(Event {
                    name: &self.name,
                    data: &self.data,
                });
            }
            self.name.clear();
            self.data.clear();
            // Only now: a client that disconnects in the middle of an event hasn't
            // received it.
            if !self.id.is_empty() {
                std::mem::swap(&mut self.last_id, &mut self.id);
                self.id.clear();
            }
            return;
        }
        let end = line.iter().position(|&byte| byte == b':');
        let (field, value) = line.split_at(end.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.name.extend_from_slice(value),
            b"id" => {
                self.id.clear();
                self.id.extend_from_slice(value);
            }
            _ => {}
        }
    }
}
