//! A client for Server-Sent Events that shares no code with the bridge.
//!
//! It speaks HTTP/1.1 over a plain socket, so that a test sees the bytes as received and can break
//! the connection.

mod body;
mod decoder;
mod request;
mod response;
mod server;

use std::{collections::VecDeque, net::SocketAddr};

use tokio::time::timeout;

use self::{
    body::Body,
    decoder::Decoder,
    request::{Headers, with_defaults},
};
pub(crate) use self::{
    body::End,
    decoder::{Event, Item},
    request::{get, get_from, options, post},
    response::Response,
};
use super::PATIENCE;

/// How many bytes of a stream to show when a test fails.
const SHOWN_BYTES: usize = 4096;

/// An open event stream.
///
/// Dropping it closes the connection as a browser does when its page is left: with a FIN, or with
/// an RST if received bytes were not read. [`reset`](Self::reset) always sends an RST.
#[derive(Debug)]
pub(crate) struct EventSource {
    body: Body,
    decoder: Decoder,
    /// Bytes received after the last item that was returned.
    undecoded: VecDeque<u8>,
    /// The last bytes of the stream, without the chunk framing.
    tail: Vec<u8>,
    /// The number of bytes received so far.
    received: usize,
}

impl EventSource {
    /// Opens the stream at `path`. Panics if the response isn't an event stream.
    pub(crate) async fn open(addr: SocketAddr, path: &str, headers: Headers<'_>) -> Self {
        let headers = with_defaults(headers, &[("Accept", "text/event-stream")]);
        match get(addr, path, &headers).await {
            Ok(response) => response.into_events().await,
            Err(error) => panic!("no answer to GET {path}: {error}"),
        }
    }

    fn new(body: Body) -> Self {
        Self {
            body,
            decoder: Decoder::default(),
            undecoded: VecDeque::new(),
            tail: Vec::new(),
            received: 0,
        }
    }

    /// The next item of any kind, or how the stream ended. Panics if neither arrives in time.
    /// Cancel-safe.
    pub(crate) async fn next_item(&mut self) -> Result<Item, End> {
        match timeout(PATIENCE, self.read_item()).await {
            Ok(outcome) => outcome,
            Err(_) => panic!("nothing within {PATIENCE:?} after {}", self.shown()),
        }
    }

    /// The next event. Skips other items, and events that only move the position. Panics if no
    /// event arrives in time or the stream ends. Cancel-safe.
    pub(crate) async fn next_event(&mut self) -> Event {
        let reading = async {
            loop {
                match self.read_item().await {
                    Ok(Item::Event(event)) if !is_position(&event) => return Ok(event),
                    Ok(_) => {}
                    Err(end) => return Err(end),
                }
            }
        };
        match timeout(PATIENCE, reading).await {
            Ok(Ok(event)) => event,
            Ok(Err(end)) => panic!("the stream ended ({end:?}) after {}", self.shown()),
            Err(_) => panic!("no event within {PATIENCE:?} after {}", self.shown()),
        }
    }

    /// All items up to the end, and how the stream ended. Panics if nothing arrives in time between
    /// two of them.
    pub(crate) async fn rest(&mut self) -> (Vec<Item>, End) {
        let mut items = Vec::new();
        loop {
            match self.next_item().await {
                Ok(item) => items.push(item),
                Err(end) => return (items, end),
            }
        }
    }

    /// What to send as `Last-Event-ID` after the items that were returned so far. It is empty until
    /// an `id` field is received, as the standard specifies even for a resumed stream; some
    /// browsers keep the previous id.
    pub(crate) fn last_event_id(&self) -> &str {
        self.decoder.last_event_id()
    }

    /// Breaks the connection: the server receives an RST instead of a FIN.
    pub(crate) fn reset(self) {
        self.body.reset();
    }

    async fn read_item(&mut self) -> Result<Item, End> {
        loop {
            while let Some(byte) = self.undecoded.pop_front() {
                if let Some(item) = self.decoder.push(byte) {
                    return Ok(item);
                }
            }
            let bytes = self.body.read().await?;
            self.keep(&bytes);
            self.undecoded.extend(bytes);
        }
    }

    /// Keeps only the last bytes of the stream, because a test may read gigabytes.
    fn keep(&mut self, bytes: &[u8]) {
        self.received += bytes.len();
        let fresh = &bytes[bytes.len().saturating_sub(SHOWN_BYTES)..];
        let excess = (self.tail.len() + fresh.len()).saturating_sub(SHOWN_BYTES);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(fresh);
    }

    /// What was received so far, for the message of a failing test.
    fn shown(&self) -> String {
        format!(
            "{} bytes, of which the last are {:?}",
            self.received,
            String::from_utf8_lossy(&self.tail)
        )
    }
}

/// Whether the event carries only the client's position.
fn is_position(event: &Event) -> bool {
    ["tidings.open", "tidings.heartbeat"].contains(&event.name.as_str())
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::{server::serve, *};

    const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream; charset=utf-8\r\n\
        transfer-encoding: chunked\r\n\r\n\
        5\r\nid: 1\r\n12\r\n\nretry: 50\ndata: a\r\n2\r\n\n\n\r\n";

    async fn close(stream: TcpStream) {
        drop(stream);
    }

    #[tokio::test]
    async fn reads_a_chunked_stream_that_is_cut() {
        let (addr, asked) = serve(STREAM, close).await;
        let mut events = EventSource::open(addr, "/x?y", &[("Last-Event-ID", "0")]).await;
        assert_eq!(events.next_item().await, Ok(Item::Retry(50)));
        assert_eq!(events.last_event_id(), "");
        let event = events.next_event().await;
        assert_eq!((event.data.as_str(), events.last_event_id()), ("a", "1"));
        assert_eq!(events.rest().await, (vec![], End::Cut));
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
            stream.write_all(b"0\r\n\r\n").await.unwrap();
            // The body itself marks its end; the connection stays open.
            let _ = stream.read_u8().await;
        };
        let (addr, _) = serve(STREAM, last).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        let (items, end) = events.rest().await;
        let event = Event {
            name: "message".to_owned(),
            data: "a".to_owned(),
            last_event_id: "1".to_owned(),
        };
        assert_eq!(items, [Item::Retry(50), Item::Event(event)]);
        assert_eq!(end, End::Clean);
    }

    #[tokio::test]
    #[should_panic(expected = "the stream ended (Cut) after 25 bytes")]
    async fn fails_when_no_event_can_come() {
        let (addr, _) = serve(STREAM, close).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        events.next_event().await;
        events.next_event().await;
    }

    #[tokio::test]
    async fn loses_nothing_when_a_wait_is_given_up() {
        let (addr, _) = serve(STREAM, close).await;
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
        // The response ends with the event: if bytes are left unread, even a plain close resets the
        // connection.
        let answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
            Content-Length: 9\r\n\r\ndata: a\n\n";
        let sees = |expected| {
            async move |mut stream: TcpStream| {
                let end = stream.read_u8().await.unwrap_err();
                assert_eq!(end.kind(), expected);
            }
        };
        let (addr, served) = serve(answer, sees(io::ErrorKind::ConnectionReset)).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        events.next_event().await;
        events.reset();
        served.await.unwrap();

        let (addr, served) = serve(answer, sees(io::ErrorKind::UnexpectedEof)).await;
        let mut events = EventSource::open(addr, "/", &[]).await;
        events.next_event().await;
        drop(events);
        served.await.unwrap();
    }
}
