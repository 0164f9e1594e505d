//! A live stream's line to its client: the socket, without the HTTP server
//! around it.
//!
//! For as long as a response lasts the server keeps two buffers of 8 KiB, the
//! request, and timers of its own. A stream lasts for hours, and says nothing
//! most of the time. So once the head of the response is in the kernel's hands,
//! a small task takes the socket over, and the server drops all it has. Streams
//! over TLS and HTTP/2 stay where they are: what it takes to write them lives in
//! the server.

use std::{
    error::Error,
    fmt, io,
    io::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::{
    sockets::{Detached, Place},
    stream::EventStream,
};

/// Bytes that a client may send after its request, which nobody reads. Who sends
/// more has not come for a stream, and is cut off.
const SENT_AFTERWARDS: usize = 64 << 10;

/// Bytes of what nobody reads that are taken at once.
const READ_AT_ONCE: usize = 1 << 10;

/// Bytes around a chunk: its length in hexadecimal, and two line breaks.
const FRAME_BYTES: usize = 2 * size_of::<usize>() + 4;

/// What ends a response that is sent in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

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

    fn open(&self, socket: Detached, stream: EventStream) {
        // Sockets belong to the runtime in which they are made.
        let _runtime = self.runtime.enter();
        let (socket, place) = socket.into_parts();
        match TcpStream::from_std(socket) {
            Ok(socket) => {
                let line = Line {
                    socket,
                    stream: Some(stream),
                    writing: Bytes::new(),
                    unread: SENT_AFTERWARDS,
                    _place: place,
                };
                self.tasks.spawn_on(line, &self.runtime);
            }
            Err(error) => debug!(%error, "could not take a socket over: {error}"),
        }
    }
}

/// The body of a response whose stream leaves the server.
///
/// It is polled when all earlier bytes are in the kernel's hands, which are the
/// head of the response, and then it fails: that makes the server drop the
/// connection and say no more. The socket stays open, as the line has a handle
/// to it of its own.
pub struct Departure {
    lines: Arc<Lines>,
    leaving: Option<(Detached, EventStream)>,
}

impl Departure {
    /// Of this stream, by this socket.
    pub fn new(lines: Arc<Lines>, socket: Detached, stream: EventStream) -> Self {
        Self {
            lines,
            leaving: Some((socket, stream)),
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
        if let Some((socket, stream)) = departure.leaving.take() {
            departure.lines.open(socket, stream);
        }
        Poll::Ready(Some(Err(Departed.into())))
    }
}

/// What the server is told: another has its socket now.
#[derive(Debug)]
struct Departed;

impl fmt::Display for Departed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream has left the server")
    }
}

impl Error for Departed {}

/// Writes a stream to its socket, until one of them ends.
struct Line {
    socket: TcpStream,
    /// None once it has ended.
    stream: Option<EventStream>,
    /// What has yet to be handed to the kernel.
    writing: Bytes,
    /// How much of what nobody reads may still come.
    unread: usize,
    /// Given back after the stream.
    _place: Place,
}

impl Line {
    /// Resolves when the client has gone, or its network.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; READ_AT_ONCE];
        loop {
            let mut bytes = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut bytes))?;
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
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.writing))?;
            self.writing.advance(count);
        }
        self.writing = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Resolves when the stream has ended and all of it is in the kernel's hands.
    fn poll_speak(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // The stream is polled only when all its earlier bytes are in the
            // kernel's hands: that is what "sent" rests on.
            if self.poll_write(cx)?.is_pending() {
                // The kernel ends what makes no progress; the stream may have to
                // end before that.
                return match &mut self.stream {
                    Some(stream) => stream.poll_cut_off(cx).map(Ok),
                    None => Poll::Pending,
                };
            }
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(Ok(()));
            };
            self.writing = match ready!(Pin::new(stream).poll_next(cx)) {
                Some(Ok(bytes)) => chunk(&bytes),
                None => {
                    self.stream = None;
                    Bytes::from_static(LAST_CHUNK)
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
        // The kernel has waited for as long as it was told to.
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
