//! Writes a stream to its connection, without the HTTP server around it.
//!
//! During a response, the server keeps two buffers of 8 KiB, the request, and its own
//! timers. A stream lasts for hours and is idle most of the time. So once the head of the
//! response is in the kernel, a small task takes over the connection, and the server
//! drops everything it holds. The streams of an HTTP/2 connection share it, so
//! [`crate::http::http2`] takes over only the stream.

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

/// Bytes that a client may send after its request. They are discarded. A client that
/// sends more is not reading a stream, and is disconnected.
const SENT_AFTERWARDS: usize = 64 << 10;

/// Bytes to discard per read.
const READ_AT_ONCE: usize = 1 << 10;

/// Overhead of a chunk: its length in hexadecimal, and two line breaks.
const FRAME_BYTES: usize = 2 * size_of::<usize>() + 4;

/// The end of a response with chunked transfer coding.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How the end of a stream is marked over HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Chunked transfer coding, which has a last chunk.
    Chunks,
    /// The connection is closed: HTTP/1.0 has no chunked coding.
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

    /// The bytes to write at the end of a stream, before the connection is closed.
    fn end(self) -> Bytes {
        match self {
            Self::Chunks => Bytes::from_static(LAST_CHUNK),
            Self::Close => Bytes::new(),
        }
    }
}

/// The tasks of all detached streams, and the runtime on which they run.
#[derive(Debug)]
pub struct DetachedStreams {
    runtime: Handle,
    tasks: TaskTracker,
}

impl DetachedStreams {
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            tasks: TaskTracker::new(),
        }
    }

    /// Resolves when all tasks have ended. Call it only when no more will be added.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn open(&self, mut transport: Transport, framing: Framing, stream: EventStream) {
        match transport.move_to(&self.runtime) {
            Ok(()) => {
                let line = DetachedStream {
                    stream: Some(stream),
                    writing: Bytes::new(),
                    unread: SENT_AFTERWARDS,
                    framing,
                    transport,
                };
                self.tasks.spawn_on(line, &self.runtime);
            }
            Err(error) => debug!(%error, "could not take over a connection: {error}"),
        }
    }
}

/// A connection while an HTTP/1 server answers its request. A stream can take the
/// connection away from the server, which then sees it as closed.
#[derive(Clone)]
pub struct Exchange(Rc<RefCell<Option<Transport>>>);

impl Exchange {
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

/// Receives the stream of an HTTP/2 request once its response has begun.
#[derive(Clone, Default)]
pub struct Handover(Rc<Cell<Option<EventStream>>>);

impl Handover {
    pub fn take(&self) -> Option<EventStream> {
        self.0.take()
    }
}

/// How a stream leaves the server that answers its request.
pub enum Exit {
    /// Together with its connection.
    Exchange(Exchange, Framing),
    /// Without the connection, which other streams share.
    Handover(Handover),
}

impl Exit {
    /// The exit for this request. Every server of the bridge provides one.
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
/// It is first polled when all earlier bytes, the head of the response, are in the
/// kernel. Then it fails, so the server drops everything that belongs to the response and
/// writes nothing more.
pub struct HandoffBody {
    detached: Arc<DetachedStreams>,
    leaving: Option<(Exit, EventStream)>,
}

impl HandoffBody {
    pub fn new(detached: Arc<DetachedStreams>, exit: Exit, stream: EventStream) -> Self {
        Self {
            detached,
            leaving: Some((exit, stream)),
        }
    }
}

impl MessageBody for HandoffBody {
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
                    departure.detached.open(transport, framing, stream);
                }
            }
            Some((Exit::Handover(handover), stream)) => handover.0.set(Some(stream)),
            None => {}
        }
        Poll::Ready(Some(Err(HandedOff.into())))
    }
}

/// The error that makes the server drop the response.
#[derive(Debug)]
struct HandedOff;

impl fmt::Display for HandedOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream was moved out of the server")
    }
}

impl Error for HandedOff {}

/// The task that writes a stream to its connection, until one of them ends.
struct DetachedStream {
    /// `None` once it has ended. Dropped before the connection, so that the connection's
    /// place is released last.
    stream: Option<EventStream>,
    /// Bytes that are not yet in the kernel.
    writing: Bytes,
    /// How many more bytes the client may send.
    unread: usize,
    framing: Framing,
    transport: Transport,
}

impl DetachedStream {
    /// Resolves when the client has disconnected, the connection is broken, or the client
    /// has sent too much.
    fn poll_peer_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    /// Resolves when all bytes of `writing` are in the kernel.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.writing.is_empty() {
            let count = ready!(Pin::new(&mut self.transport).poll_write(cx, &self.writing))?;
            self.writing.advance(count);
        }
        self.writing = Bytes::new();
        // TLS may have buffered bytes for which the kernel had no room.
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    /// Resolves when the stream has ended and all its bytes are in the kernel.
    fn poll_write_events(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // The stream is polled only when all its earlier bytes are in the kernel. The
            // meaning of "sent" depends on this.
            if self.poll_write(cx)?.is_pending() {
                // A write without progress has a deadline, but the stream may have to end
                // earlier.
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

impl Future for DetachedStream {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let line = self.get_mut();
        let outcome = match line.poll_peer_closed(cx) {
            Poll::Ready(gone) => gone,
            Poll::Pending => ready!(line.poll_write_events(cx)),
        };
        // The client read nothing until the deadline.
        if let (Err(error), Some(stream)) = (outcome, &mut line.stream)
            && error.kind() == io::ErrorKind::TimedOut
        {
            stream.time_out();
        }
        Poll::Ready(())
    }
}

/// See <https://www.rfc-editor.org/rfc/rfc9112#section-7.1>.
fn chunk(bytes: &[u8]) -> Bytes {
    let mut chunk = BytesMut::with_capacity(bytes.len() + FRAME_BYTES);
    let written = write!((&mut chunk).writer(), "{:x}\r\n", bytes.len());
    debug_assert!(written.is_ok(), "writing to memory can't fail");
    chunk.put_slice(bytes);
    chunk.put_slice(b"\r\n");
    chunk.freeze()
}
