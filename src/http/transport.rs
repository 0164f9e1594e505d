//! A client's connection below HTTP: its socket, with TLS or without.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::Handle,
};
use tokio_rustls::server::TlsStream;

use crate::http::{sockets::SocketPermit, write_deadline::Stall};

/// A client's socket and its place. A write that makes no progress fails with
/// [`io::ErrorKind::TimedOut`] at [`CLIENT_LIMIT`](crate::http::sockets::CLIENT_LIMIT),
/// also on systems whose kernel has no such deadline.
pub struct Socket {
    /// `None` only while it moves to another runtime, or if that has failed.
    tcp: Option<TcpStream>,
    stall: Stall,
    /// `None` at the admin address, where clients are not counted. Released after the
    /// socket is closed.
    _place: Option<SocketPermit>,
}

impl Socket {
    pub fn new(tcp: TcpStream, place: Option<SocketPermit>) -> Self {
        Self {
            tcp: Some(tcp),
            stall: Stall::default(),
            _place: place,
        }
    }

    fn move_to(&mut self, runtime: &Handle) -> io::Result<()> {
        let tcp = self.tcp.take().ok_or_else(closed)?.into_std()?;
        // Sockets and timers belong to the runtime in which they are created.
        let _runtime = runtime.enter();
        self.tcp = Some(TcpStream::from_std(tcp)?);
        self.stall.end();
        Ok(())
    }

    fn tcp(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.tcp.as_mut().map(Pin::new).ok_or_else(closed)
    }

    /// Returns the outcome of a write, or an error if there was no progress for too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall.end();
            return outcome;
        }
        ready!(self.stall.poll_expired(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.tcp()?.poll_read(cx, bytes)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.tcp()?.poll_write(cx, bytes);
        self.watch(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.tcp()?.poll_write_vectored(cx, bytes);
        self.watch(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp()?.poll_shutdown(cx)
    }
}

/// A connection as HTTP uses it.
pub enum Transport {
    Plain(Socket),
    /// After the handshake. Boxed, because a session takes a kilobyte.
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    /// Moves the connection to another runtime, which must be the one that polls it next.
    ///
    /// # Errors
    ///
    /// If the system refuses; then the connection is closed.
    pub fn move_to(&mut self, runtime: &Handle) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.move_to(runtime),
            Self::Tls(stream) => stream.get_mut().0.move_to(runtime),
        }
    }

    /// The client's address.
    pub fn peer(&self) -> Option<SocketAddr> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        socket.tcp.as_ref()?.peer_addr().ok()
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, bytes),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
        time::{Instant, timeout},
    };

    use super::*;
    use crate::http::sockets::CLIENT_LIMIT;

    // The paused clock doesn't advance while anything can be written, and jumps once
    // nothing can.
    #[tokio::test(start_paused = true)]
    async fn a_write_without_progress_fails_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let _client = TcpStream::connect(address).await.expect("a connection");
        let (accepted, _) = listener.accept().await.expect("a client");
        let mut socket = Socket::new(accepted, None);
        let start = Instant::now();
        let writing = async {
            loop {
                if let Err(error) = socket.write_all(&[b'x'; 1 << 16]).await {
                    break error;
                }
            }
        };
        let error = timeout(2 * CLIENT_LIMIT, writing).await;
        let error = error.expect("a deadline");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= CLIENT_LIMIT, "{:?}", start.elapsed());
    }
}
