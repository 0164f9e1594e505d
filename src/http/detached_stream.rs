//! A live stream's line to its client: the connection, without the HTTP server
//! around it.
//!
//! For as long as a response lasts the server keeps two buffers of 8 KiB, the
//! request, and timers of its own. A stream lasts for hours, and says nothing
//! most of the time. So once the head of the response is in the kernel's hands,
//! a small task takes the connection over, and the server drops all it has. The
//! streams of an HTTP/2 connection share it, so there [`crate::http::http2`] takes over
//! the stream alone.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fmt, io,
    io::Write,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::{
    HttpMessage, HttpRequest,
    body::{BodySize, MessageBody},
    http::Version,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::{delivery::stream::EventStream, http::transport::Transport};

/// Bytes that a client may send after its request, which nobody reads. Who sends
/// more has not come for a stream, and is cut off.
const SENT_AFTERWARDS: usize = 64 << 10;

/// Bytes of what nobody reads that are taken at once.
const READ_AT_ONCE: usize = 1 << 10;

/// Bytes around a chunk: its length in hexadecimal, and two line breaks.
const FRAME_BYTES: usize = 2 * size_of::<usize>() + 4;

/// What ends a response that is sent in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the end of a stream is marked over HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Chunked transfer coding, which has a last chunk.
    Chunks,
    /// The end of the connection: HTTP/1.0 has no chunked coding.
    Close,
}

impl Framing {
    /// The framing of a response to a request of this version.
    pub fn of(version: Version) -> Self {
        if version < Version::HTTP_11 {
            Self::Close
        } else {
            Self::Chunks
        }
    }

    /// Frames a piece of a stream.
    fn piece(self, bytes: Bytes) -> Bytes {
        match self {
            Self::Chunks => chunk(&bytes),
            Self::Close => bytes,
        }
    }

    /// What is written at the end of a stream, before the connection is closed.
    fn end(self) -> Bytes {
        match self {
            Self::Chunks => Bytes::from_static(LAST_CHUNK),
            Self::Close => Bytes::new(),
        }
    }
}

/// All lines, and where they run.
#[derive(Debug)]
pub struct Lines {
    runtime: Handle,
    tasks: TaskTracker,
}

impl Lines {
    /// They run on this runtime.
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            tasks: TaskTracker::new(),
        }
    }

    /// Resolves when all have ended, and no more are to come.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn open(&self, mut transport: Transport, framing: Framing, stream: EventStream) {
        match transport.move_to(&self.runtime) {
            Ok(()) => {
                let line = Line {
                    stream: Some(stream),
                    writing: Bytes::new(),
                    unread: SENT_AFTERWARDS,
                    framing,
                    transport,
                };
                self.tasks.spawn_on(line, &self.runtime);
            }
            Err(error) => debug!(%error, "could not take a connection over: {error}"),
        }
    }
}

/// A connection while an HTTP/1.1 server answers the request that came by it. A
/// stream can take it away from the server, which finds it closed then.
#[derive(Clone)]
pub struct Exchange(Rc<RefCell<Option<Transport>>>);

impl Exchange {
    /// By this connection.
    pub fn new(transport: Transport) -> Self {
        Self(Rc::new(RefCell::new(Some(transport))))
    }

    fn poll<T>(
        &self,
        poll: impl FnOnce(Pin<&mut Transport>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *self.0.borrow_mut() {
            Some(transport) => poll(Pin::new(transport)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Exchange {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(|transport| transport.poll_read(cx, bytes))
    }
}

impl AsyncWrite for Exchange {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(|transport| transport.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|transport| transport.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|transport| transport.poll_shutdown(cx))
    }
}

/// Where a stream of an HTTP/2 connection is put once its response has begun.
#[derive(Clone, Default)]
pub struct Handover(Rc<Cell<Option<EventStream>>>);

impl Handover {
    /// What was put there.
    pub fn take(&self) -> Option<EventStream> {
        self.0.take()
    }
}

/// How a stream leaves the server that answers its request.
pub enum Exit {
    /// With its connection.
    Exchange(Exchange, Framing),
    /// Without: others share it.
    Handover(Handover),
}

impl Exit {
    /// That of the server which has this request. Every server of the bridge has
    /// one.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        let exchange = request.conn_data::<Exchange>().cloned();
        let handover = || request.extensions().get::<Handover>().cloned();
        exchange
            .map(|exchange| Self::Exchange(exchange, Framing::of(request.version())))
            .or_else(|| handover().map(Self::Handover))
    }
}

/// The body of a response whose stream leaves the server.
///
/// It is polled when all earlier bytes are in the kernel's hands, which are the
/// head of the response, and then it fails: that makes the server drop what it
/// has of the response, and say no more.
pub struct Departure {
    lines: Arc<Lines>,
    leaving: Option<(Exit, EventStream)>,
}

impl Departure {
    /// Of this stream, by this exit.
    pub fn new(lines: Arc<Lines>, exit: Exit, stream: EventStream) -> Self {
        Self {
            lines,
            leaving: Some((exit, stream)),
        }
    }
}

impl MessageBody for Departure {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let departure = self.get_mut();
        match departure.leaving.take() {
            Some((Exit::Exchange(exchange, framing), stream)) => {
                if let Some(transport) = exchange.0.take() {
                    departure.lines.open(transport, framing, stream);
                }
            }
            Some((Exit::Handover(handover), stream)) => handover.0.set(Some(stream)),
            None => {}
        }
        Poll::Ready(Some(Err(Departed.into())))
    }
}

/// What the server is told: its part of the response is over.
#[derive(Debug)]
struct Departed;

impl fmt::Display for Departed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream has left the server")
    }
}

impl Error for Departed {}

/// Writes a stream to its connection, until one of them ends.
struct Line {
    /// None once it has ended. Dropped before the connection, whose place is given
    /// back last.
    stream: Option<EventStream>,
    /// What has yet to be handed to the kernel.
    writing: Bytes,
    /// How much of what nobody reads may still come.
    unread: usize,
    framing: Framing,
    transport: Transport,
}

impl Line {
    /// Resolves when the client has gone, or its network.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_AT_ONCE];
        loop {
            let mut bytes = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut bytes))?;
            let count = bytes.filled().len();
            if count == 0 || count > self.unread {
                return Poll::Ready(Ok(()));
            }
            self.unread -= count;
        }
    }

    /// Resolves when all that is being written is in the kernel's hands.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.writing.is_empty() {
            let count = ready!(Pin::new(&mut self.transport).poll_write(cx, &self.writing))?;
            self.writing.advance(count);
        }
        self.writing = Bytes::new();
        // TLS may have taken bytes that the kernel had no room for.
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    /// Resolves when the stream has ended and all of it is in the kernel's hands.
    fn poll_speak(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // The stream is polled only when all its earlier bytes are in the
            // kernel's hands: that is what "sent" rests on.
            if self.poll_write(cx)?.is_pending() {
                // What makes no progress has a deadline; the stream may have to end
                // before that.
                return match &mut self.stream {
                    Some(stream) => stream.poll_cut_off(cx).map(Ok),
                    None => Poll::Pending,
                };
            }
            let Some(stream) = &mut self.stream else {
                return Pin::new(&mut self.transport).poll_shutdown(cx);
            };
            self.writing = match ready!(Pin::new(stream).poll_next(cx)) {
                Some(Ok(bytes)) => self.framing.piece(bytes),
                None => {
                    self.stream = None;
                    self.framing.end()
                }
            };
        }
    }
}

impl Future for Line {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let line = self.get_mut();
        let outcome = match line.poll_gone(cx) {
            Poll::Ready(gone) => gone,
            Poll::Pending => ready!(line.poll_speak(cx)),
        };
        // The client took nothing until the deadline.
        if let (Err(error), Some(stream)) = (outcome, &mut line.stream)
            && error.kind() == io::ErrorKind::TimedOut
        {
            stream.fall_silent();
        }
        Poll::Ready(())
    }
}

/// See <https://www.rfc-editor.org/rfc/rfc9112#section-7.1>.
fn chunk(bytes: &[u8]) -> Bytes {
    let mut chunk = BytesMut::with_capacity(bytes.len() + FRAME_BYTES);
    let written = write!((&mut chunk).writer(), "{:x}\r\n", bytes.len());
    debug_assert!(written.is_ok(), "memory takes all that is written to it");
    chunk.put_slice(bytes);
    chunk.put_slice(b"\r\n");
    chunk.freeze()
}
