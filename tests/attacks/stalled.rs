//! A client that opens a stream and never reads it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::support::bridge::token;

/// The receive buffer is small, so most of a backlog stays with the bridge. Each of a
/// few dozen clients has a buffer of a different size, so that they stop at different
/// places of a page, some of them between two pages.
const RECEIVE_BUFFER: usize = 4 << 10;
const SIZES: usize = 64;
static OPENED: AtomicUsize = AtomicUsize::new(0);

/// An open connection. Dropping it closes it.
pub struct Stalled(TcpStream);

impl Stalled {
    /// Opens a stream of `user`.
    pub async fn open(address: SocketAddr, user: &str) -> Self {
        Self::ask(address, user, "/stream").await
    }

    /// Opens a stream of `user` at this path.
    pub async fn ask(address: SocketAddr, user: &str, path: &str) -> Self {
        let bearer = format!("Authorization: Bearer {}\r\n", token(user));
        Self::request(address, path, &bearer).await
    }

    /// Opens a stream with only the ticket in this path.
    pub async fn ask_with_ticket(address: SocketAddr, path: &str) -> Self {
        Self::request(address, path, "").await
    }

    async fn request(address: SocketAddr, path: &str, headers: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        let size = RECEIVE_BUFFER + ((OPENED.fetch_add(1, Ordering::Relaxed) % SIZES) << 10);
        SockRef::from(&socket)
            .set_recv_buffer_size(size)
            .expect("a small buffer");
        let mut stream = socket.connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: tidings\r\n{headers}\r\n");
        let written = stream.write_all(request.as_bytes()).await;
        written.expect("a request");
        Self(stream)
    }

    /// Starts reading, until this text has arrived or the connection ends. Returns
    /// whether the text has arrived.
    pub async fn read_until(&mut self, text: &str) -> bool {
        let mut come = Vec::new();
        while let Ok(1..) = self.0.read_buf(&mut come).await {
            if String::from_utf8_lossy(&come).contains(text) {
                return true;
            }
            // The last bytes may be the beginning of the text.
            come.drain(..come.len().saturating_sub(text.len()));
        }
        false
    }
}
