//! A client for Server-Sent Events that shares no code with the bridge.
//!
//! It speaks HTTP/1.1 over a plain socket, so that a test sees the bytes as they
//! came and can break the connection, and reads the event stream as the HTML
//! standard has it (9.2.6, "Interpreting an event stream").

use std::{collections::VecDeque, io, mem, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long to wait for anything before the test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How much of a stream to show when a test fails.
const SHOWN_BYTES: usize = 4096;

type Headers<'a> = &'a [(&'a str, &'a str)];

/// Asks for `path`. The answer may have any status; an error means that there
/// was none.
pub(crate) async fn get(
    addr: SocketAddr,
    path: &str,
    headers: Headers<'_>,
) -> io::Result<Response> {
    request(addr, "GET", path, headers, "").await
}

/// Posts JSON to `path`, or what else a `Content-Type` among the headers says.
pub(crate) async fn post(
    addr: SocketAddr,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> io::Result<Response> {
    let length = body.len().to_string();
    let defaults = [
        ("Content-Type", "application/json"),
        ("Content-Length", length.as_str()),
    ];
    request(addr, "POST", path, &with_defaults(headers, &defaults), body).await
}

async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> io::Result<Response> {
    let host = addr.to_string();
    let mut message = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in with_defaults(headers, &[("Host", &host)]) {
        message.push_str(&format!("{name}: {value}\r\n"));
    }
    message.push_str("\r\n");
    message.push_str(body);

    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(message.as_bytes()).await?;
        Response::read(stream).await
    };
    let mut response = timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| panic!("no answer to {method} {path} within {PATIENCE:?}"))?;
    response.resumed_from = find_header(headers, "Last-Event-ID")
        .unwrap_or("")
        .to_owned();
    Ok(response)
}

/// The headers, and those of `defaults` whose names aren't among them.
fn with_defaults<'a>(headers: Headers<'a>, defaults: Headers<'a>) -> Vec<(&'a str, &'a str)> {
    let missing = defaults
        .iter()
        .filter(|(name, _)| find_header(headers, name).is_none());
    headers.iter().chain(missing).copied().collect()
}

fn find_header<'a>(headers: Headers<'a>, wanted: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map(|&(_, value)| value)
}

/// The answer to a request, with its body still to be read.
#[derive(Debug)]
pub(crate) struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    /// The `Last-Event-ID` that was sent.
    resumed_from: String,
}

impl Response {
    async fn read(mut stream: TcpStream) -> io::Result<Self> {
        const END: &[u8] = b"\r\n\r\n";
        let mut received = Vec::new();
        let end = loop {
            if let Some(at) = received.windows(END.len()).position(|bytes| bytes == END) {
                break at;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let rest = received.split_off(end + END.len());
        let head = String::from_utf8_lossy(&received[..end]);
        let (status_line, lines) = head.split_once("\r\n").unwrap_or((&head, ""));
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|line| line.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
        let headers: Vec<(String, String)> = lines.lines().map(parse_header).collect();
        let framing = Framing::of(status, &headers);
        Ok(Self {
            status,
            headers,
            body: Body {
                stream,
                received: rest,
                framing,
            },
            resumed_from: String::new(),
        })
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The value of the first header of this name, in any case of letters.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The whole body. Panics if it is cut short.
    pub(crate) async fn text(mut self) -> String {
        let mut text = Vec::new();
        let end = loop {
            match patiently("the end of the body", &text, self.body.read()).await {
                Ok(piece) => text.extend(piece),
                Err(end) => break end,
            }
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(end, End::Clean, "the body was cut short: {text}");
        text
    }

    /// Takes the body for an event stream. Panics with the status and the body
    /// if it isn't one.
    pub(crate) async fn into_events(self) -> EventSource {
        let kind = self.header("Content-Type").unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if self.status != 200 || !essence.eq_ignore_ascii_case("text/event-stream") {
            let (status, kind) = (self.status, kind.to_owned());
            panic!(
                "not an event stream but {status} {kind:?}: {}",
                self.text().await
            );
        }
        EventSource {
            body: self.body,
            decoder: Decoder::resuming(&self.resumed_from),
            undecoded: VecDeque::new(),
            raw: Vec::new(),
        }
    }
}

fn parse_header(line: &str) -> (String, String) {
    let (name, value) = line
        .split_once(':')
        .unwrap_or_else(|| panic!("not a header: {line:?}"));
    (name.to_owned(), value.trim().to_owned())
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Where the server said that it would.
    Clean,
    /// Earlier, or with a reset.
    Cut,
}

#[derive(Debug)]
struct Body {
    stream: TcpStream,
    /// What came and isn't decoded yet.
    received: Vec<u8>,
    framing: Framing,
}

impl Body {
    /// Some more bytes of the body, at least one. Nothing is lost when the
    /// future is dropped.
    async fn read(&mut self) -> Result<Vec<u8>, End> {
        loop {
            let piece = self.framing.decode(&mem::take(&mut self.received));
            if !piece.is_empty() {
                return Ok(piece);
            }
            if self.framing.is_complete() {
                return Err(End::Clean);
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) if matches!(self.framing, Framing::UntilClose) => return Err(End::Clean),
                Ok(0) | Err(_) => return Err(End::Cut),
                Ok(_) => {}
            }
        }
    }
}

/// What tells the end of a body.
#[derive(Debug)]
enum Framing {
    Chunked(Chunked),
    /// So many bytes are still to come.
    Length(usize),
    UntilClose,
}

impl Framing {
    fn of(status: u16, headers: &[(String, String)]) -> Self {
        let value = |wanted: &str| {
            let mut headers = headers.iter();
            headers
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value)
        };
        match (value("Transfer-Encoding"), value("Content-Length")) {
            _ if status == 204 || status == 304 => Self::Length(0),
            (Some(coding), _) => {
                assert!(
                    coding.eq_ignore_ascii_case("chunked"),
                    "unknown coding {coding:?}"
                );
                Self::Chunked(Chunked::default())
            }
            (None, Some(length)) => {
                Self::Length(length.parse().expect("Content-Length is a number"))
            }
            (None, None) => Self::UntilClose,
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Chunked(chunked) => chunked.decode(bytes),
            Self::Length(left) => {
                let body = &bytes[..bytes.len().min(*left)];
                *left -= body.len();
                body.to_vec()
            }
            Self::UntilClose => bytes.to_vec(),
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::Chunked(chunked) => chunked.expected == Expected::Nothing,
            Self::Length(left) => *left == 0,
            Self::UntilClose => false,
        }
    }
}

/// Decodes a chunked body. Panics where it breaks the rules of HTTP.
#[derive(Debug, Default)]
struct Chunked {
    expected: Expected,
    /// The line so far, where one is expected.
    line: Vec<u8>,
}

/// What comes next in a chunked body.
#[derive(Debug, Default, PartialEq)]
enum Expected {
    #[default]
    Size,
    Data(usize),
    EndOfData,
    Trailer,
    Nothing,
}

impl Chunked {
    fn decode(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        while !bytes.is_empty() {
            self.expected = match self.expected {
                Expected::Data(left) => {
                    let (data, rest) = bytes.split_at(bytes.len().min(left));
                    body.extend_from_slice(data);
                    bytes = rest;
                    match left - data.len() {
                        0 => Expected::EndOfData,
                        left => Expected::Data(left),
                    }
                }
                Expected::Nothing => panic!("bytes after the last chunk: {bytes:?}"),
                _ => match self.take_line(&mut bytes) {
                    Some(line) => self.after(&line),
                    None => break,
                },
            };
        }
        body
    }

    /// The line, once its end has come.
    fn take_line(&mut self, bytes: &mut &[u8]) -> Option<String> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        self.line.extend_from_slice(line);
        *bytes = rest;
        end?;
        let line = String::from_utf8(mem::take(&mut self.line)).expect("a line is text");
        let line = line.strip_suffix("\r\n").expect("a line ends in CR LF");
        Some(line.to_owned())
    }

    fn after(&self, line: &str) -> Expected {
        match self.expected {
            Expected::Size => {
                let size = line.split(';').next().unwrap_or_default().trim();
                match usize::from_str_radix(size, 16) {
                    Ok(0) => Expected::Trailer,
                    Ok(size) => Expected::Data(size),
                    Err(error) => panic!("{line:?} is no size of a chunk: {error}"),
                }
            }
            Expected::Trailer if line.is_empty() => Expected::Nothing,
            Expected::Trailer => Expected::Trailer,
            _ => {
                assert_eq!(line, "", "a chunk is longer than it said");
                Expected::Size
            }
        }
    }
}

/// An open event stream.
///
/// Dropping it closes the connection as a browser does whose page is left: with
/// a FIN, or, where bytes had come that nobody read, with an RST. To be sure of
/// the latter there is [`reset`](Self::reset).
#[derive(Debug)]
pub(crate) struct EventSource {
    body: Body,
    decoder: Decoder,
    /// What came after the last item that was asked for.
    undecoded: VecDeque<u8>,
    raw: Vec<u8>,
}

impl EventSource {
    /// Opens the stream at `path`, and panics if there is none.
    pub(crate) async fn open(addr: SocketAddr, path: &str, headers: Headers<'_>) -> Self {
        let headers = with_defaults(headers, &[("Accept", "text/event-stream")]);
        match get(addr, path, &headers).await {
            Ok(response) => response.into_events().await,
            Err(error) => panic!("no answer to GET {path}: {error}"),
        }
    }

    /// The next thing of any kind, or how the stream ended. Panics if neither
    /// comes in time. Nothing is lost when the future is dropped.
    pub(crate) async fn next_item(&mut self) -> Result<Item, End> {
        loop {
            while let Some(byte) = self.undecoded.pop_front() {
                if let Some(item) = self.decoder.push(byte) {
                    return Ok(item);
                }
            }
            let bytes = patiently("another item", &self.raw, self.body.read()).await?;
            self.raw.extend_from_slice(&bytes);
            self.undecoded.extend(bytes);
        }
    }

    /// The next event; other items are skipped. Panics if none comes in time,
    /// or the stream ends. Nothing is lost when the future is dropped.
    pub(crate) async fn next_event(&mut self) -> Event {
        let event = async {
            loop {
                match self.next_item().await {
                    Ok(Item::Event(event)) => return Ok(event),
                    Ok(_) => {}
                    Err(end) => return Err(end),
                }
            }
        };
        match timeout(PATIENCE, event).await {
            Ok(Ok(event)) => event,
            Ok(Err(end)) => panic!("the stream ended ({end:?}) after {}", shown(&self.raw)),
            Err(_) => panic!("no event within {PATIENCE:?} after {}", shown(&self.raw)),
        }
    }

    /// All items up to the end, and what end that was. Panics when between two
    /// of them nothing comes in time.
    pub(crate) async fn rest(&mut self) -> (Vec<Item>, End) {
        let mut items = Vec::new();
        loop {
            match self.next_item().await {
                Ok(item) => items.push(item),
                Err(end) => return (items, end),
            }
        }
    }

    /// What to send as `Last-Event-ID` after the items that were taken so far.
    ///
    /// At first that is the one that was sent. By the letter of the standard,
    /// though, the stream's first blank line sets it to the stream's own id, and
    /// that is empty until an `id` field comes; some browsers are kinder.
    pub(crate) fn last_event_id(&self) -> &str {
        &self.decoder.last_event_id
    }

    /// The reconnection time that the items taken so far set, if they did.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.decoder.retry
    }

    /// The whole stream so far, byte by byte, without the chunks that it came in.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Breaks the connection: the server gets an RST instead of a FIN.
    pub(crate) fn reset(self) {
        self.body
            .stream
            .set_zero_linger()
            .expect("the socket is open");
    }
}

/// Waits for `outcome`, and panics with what came before it if that takes too
/// long.
async fn patiently<T>(awaited: &str, before: &[u8], outcome: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, outcome).await {
        Ok(outcome) => outcome,
        Err(_) => panic!(
            "{awaited} didn't come within {PATIENCE:?} after {}",
            shown(before)
        ),
    }
}

fn shown(bytes: &[u8]) -> String {
    let tail = &bytes[bytes.len().saturating_sub(SHOWN_BYTES)..];
    format!(
        "{} bytes, of which the last are {:?}",
        bytes.len(),
        String::from_utf8_lossy(tail)
    )
}

/// An event, as a page's script gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
    pub(crate) last_event_id: String,
}

/// A thing that a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Event(Event),
    /// A block without data that set the id.
    Id(String),
    /// A new reconnection time in milliseconds.
    Retry(u64),
    /// A comment, all that follows the colon.
    Comment(String),
}

/// Decodes an event stream.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    place: Place,
    line: Vec<u8>,
    data: String,
    event_type: String,
    /// The id that the present block sets, if it does.
    new_id: Option<String>,
    /// The one that the blocks before it set: empty if none did.
    id: String,
    last_event_id: String,
    retry: Option<Duration>,
}

/// Where in the stream the next byte is.
#[derive(Debug, Default, PartialEq)]
enum Place {
    /// In the first line, which may begin with a byte order mark.
    #[default]
    FirstLine,
    Line,
    /// After a line that ended in CR, to which a LF would still belong.
    AfterCr,
}

impl Decoder {
    /// The decoder of a stream that was asked for with this `Last-Event-ID`.
    fn resuming(last_event_id: &str) -> Self {
        Self {
            last_event_id: last_event_id.to_owned(),
            ..Self::default()
        }
    }

    /// The items that these bytes complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Item> {
        bytes.iter().filter_map(|&byte| self.push(byte)).collect()
    }

    /// The item that this byte completes, and it never completes two.
    fn push(&mut self, byte: u8) -> Option<Item> {
        match (byte, &self.place) {
            (b'\n', Place::AfterCr) => {
                self.place = Place::Line;
                None
            }
            (b'\n', _) => self.end_line(Place::Line),
            (b'\r', _) => self.end_line(Place::AfterCr),
            (_, place) => {
                if *place == Place::AfterCr {
                    self.place = Place::Line;
                }
                self.line.push(byte);
                None
            }
        }
    }

    fn end_line(&mut self, next: Place) -> Option<Item> {
        let line = mem::take(&mut self.line);
        let mut line = line.as_slice();
        if mem::replace(&mut self.place, next) == Place::FirstLine {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        let line = String::from_utf8_lossy(line);
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
            // `parse` alone would also take a sign.
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                let milliseconds = value.parse().ok()?;
                self.retry = Some(Duration::from_millis(milliseconds));
                return Some(Item::Retry(milliseconds));
            }
            _ => {}
        }
        None
    }

    /// Dispatches the event, as the standard says, at a blank line.
    fn end_block(&mut self) -> Option<Item> {
        let data = mem::take(&mut self.data);
        let event_type = mem::take(&mut self.event_type);
        let new_id = self.new_id.take();
        if let Some(id) = &new_id {
            self.id.clone_from(id);
        }
        self.last_event_id.clone_from(&self.id);

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
            last_event_id: self.last_event_id.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Decodes at once and byte by byte, which must come to the same.
    fn decoded(stream: impl AsRef<[u8]>) -> Vec<Item> {
        let stream = stream.as_ref();
        let at_once = Decoder::default().feed(stream);
        let mut decoder = Decoder::default();
        let one_by_one: Vec<Item> = stream
            .iter()
            .flat_map(|byte| decoder.feed(&[*byte]))
            .collect();
        assert_eq!(at_once, one_by_one);
        at_once
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
    fn skips_one_byte_order_mark_at_the_start() {
        assert_eq!(decoded("\u{FEFF}data:x\n\n"), [message("x")]);
        assert_eq!(decoded("\u{FEFF}\u{FEFF}data:x\n\n"), []);
        assert_eq!(decoded(":\n\u{FEFF}data:x\n\n"), [comment("")]);
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
        let mut decoder = Decoder::resuming("7");
        assert_eq!(decoder.feed(b"id: 8\n"), []);
        assert_eq!(decoder.last_event_id, "7");
        assert_eq!(decoder.feed(b"\n"), [Item::Id("8".to_owned())]);
        assert_eq!(decoder.last_event_id, "8");

        let mut decoder = Decoder::resuming("7");
        assert_eq!(decoder.feed(b": hello\n\n"), [comment(" hello")]);
        assert_eq!(decoder.last_event_id, "", "by the letter of the standard");
    }

    #[test]
    fn takes_only_digits_for_a_retry() {
        let stream = "retry: 1500\nretry: +5\nretry: 1.5\nretry:\nretry: 99999999999999999999\n";
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(stream.as_bytes()), [Item::Retry(1500)]);
        assert_eq!(decoder.retry, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn ignores_fields_it_does_not_know() {
        assert_eq!(decoded("Data: x\n data: x\ndata : x\nfoo\n\n"), []);
    }

    /// Answers one request with `answer`, a byte at a time, and then does `last`
    /// with the connection. Tells what was asked.
    async fn server<F: Future<Output = ()> + Send>(
        answer: &'static str,
        last: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") && !asked.ends_with(b"}") {
                stream.read_buf(&mut asked).await.unwrap();
            }
            for byte in answer.as_bytes() {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            last(stream).await;
            String::from_utf8(asked).unwrap()
        });
        (addr, served)
    }

    async fn close(stream: TcpStream) {
        drop(stream);
    }

    const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream; charset=utf-8\r\n\
        transfer-encoding: chunked\r\n\r\n\
        5\r\nid: 1\r\n12;x=y\r\n\nretry: 50\ndata: a\r\n2\r\n\n\n\r\n";

    #[tokio::test]
    async fn reads_a_chunked_stream_that_is_cut() {
        let (addr, asked) = server(STREAM, close).await;
        let mut events = EventSource::open(addr, "/x?y", &[("Last-Event-ID", "0")]).await;
        assert_eq!((events.last_event_id(), events.retry()), ("0", None));
        assert_eq!(events.next_item().await, Ok(Item::Retry(50)));
        assert_eq!(
            (events.last_event_id(), events.retry()),
            ("0", Some(Duration::from_millis(50)))
        );
        let event = events.next_event().await;
        assert_eq!((event.data.as_str(), events.last_event_id()), ("a", "1"));
        assert_eq!(events.rest().await, (vec![], End::Cut));
        assert_eq!(events.raw(), b"id: 1\nretry: 50\ndata: a\n\n");
        assert_eq!(
            asked.await.unwrap(),
            format!(
                "GET /x?y HTTP/1.1\r\nLast-Event-ID: 0\r\nAccept: text/event-stream\r\n\
                 Host: {addr}\r\n\r\n"
            )
        );
    }

    #[tokio::test]
    async fn tells_a_clean_end() {
        let last = async |mut stream: TcpStream| {
            stream.write_all(b"0\r\nTrailer: x\r\n\r\n").await.unwrap();
            // The end is in the body, not in the connection's close.
            let _ = stream.read_u8().await;
        };
        let (addr, _) = server(STREAM, last).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        let (items, end) = events.rest().await;
        assert_eq!(items, [Item::Retry(50), event("message", "a", "1")]);
        assert_eq!(end, End::Clean);
    }

    #[tokio::test]
    #[should_panic(expected = "the stream ended (Cut) after 25 bytes")]
    async fn fails_when_no_event_can_come() {
        let (addr, _) = server(STREAM, close).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        events.next_event().await;
        events.next_event().await;
    }

    #[tokio::test]
    async fn loses_nothing_when_a_wait_is_given_up() {
        let (addr, _) = server(STREAM, close).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        let item = loop {
            if let Ok(item) = timeout(Duration::from_micros(1), events.next_item()).await {
                break item;
            }
        };
        assert_eq!(item, Ok(Item::Retry(50)));
        assert_eq!(events.next_event().await.data, "a");
    }

    #[tokio::test]
    async fn resets_or_closes() {
        // It ends with the event: where bytes are left unread, even a plain
        // close resets the connection.
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: a\n\n";
        let sees = |expected| {
            async move |mut stream: TcpStream| {
                let end = stream.read_u8().await.unwrap_err();
                assert_eq!(end.kind(), expected);
            }
        };
        let (addr, served) = server(answer, sees(io::ErrorKind::ConnectionReset)).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        events.next_event().await;
        events.reset();
        served.await.unwrap();

        let (addr, served) = server(answer, sees(io::ErrorKind::UnexpectedEof)).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        events.next_event().await;
        drop(events);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn posts_json() {
        let answer = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok";
        let (addr, asked) = server(answer, close).await;
        let response = post(addr, "/p", &[("host", "h"), ("X", "y")], r#"{"a":1}"#)
            .await
            .unwrap();
        assert_eq!(
            (response.status(), response.header("x-a")),
            (201, Some("b"))
        );
        assert_eq!(response.header("absent"), None);
        assert_eq!(response.text().await, "ok");
        assert_eq!(
            asked.await.unwrap(),
            "POST /p HTTP/1.1\r\nhost: h\r\nX: y\r\nContent-Type: application/json\r\n\
             Content-Length: 7\r\n\r\n{\"a\":1}"
        );
    }

    #[tokio::test]
    async fn reads_bodies_of_no_given_length() {
        let (addr, _) = server("HTTP/1.1 200 OK\r\n\r\nto the end", close).await;
        assert_eq!(
            get(addr, "/", &[]).await.unwrap().text().await,
            "to the end"
        );
        let (addr, _) = server("HTTP/1.1 204 No Content\r\n\r\n", close).await;
        assert_eq!(get(addr, "/", &[]).await.unwrap().text().await, "");
    }

    #[tokio::test]
    #[should_panic(expected = "the body was cut short: half")]
    async fn fails_on_half_a_body() {
        let (addr, _) = server("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf", close).await;
        get(addr, "/", &[]).await.unwrap().text().await;
    }

    #[tokio::test]
    #[should_panic(expected = "not an event stream but 404 \"text/plain\": no such")]
    async fn fails_on_what_is_no_stream() {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\
            Content-Length: 7\r\n\r\nno such";
        let (addr, _) = server(answer, close).await;
        EventSource::open(addr, "/", &[]).await;
    }

    #[tokio::test]
    async fn tells_when_there_is_no_answer() {
        let (addr, _) = server("HTTP/1.1 2", close).await;
        let error = get(addr, "/", &[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
