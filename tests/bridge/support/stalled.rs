//! A client that asks for a stream and never reads it.

use std::net::{IpAddr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::bridge::token;

/// What its kernel takes for it, which is little: most of a backlog stays with the
/// bridge.
const RECEIVE_BUFFER: u32 = 4 << 10;

/// An open connection. Dropping it closes it.
pub struct Stalled(TcpStream);

impl Stalled {
    /// Asks for a stream of `user`.
    pub async fn open(address: SocketAddr, user: &str) -> Self {
        Self::ask(address.ip(), address, user, "/stream").await
    }

    /// Asks for a stream of `user` at this path, from this address.
    pub async fn ask(from: IpAddr, address: SocketAddr, user: &str, path: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        let bound = socket.bind(SocketAddr::new(from, 0));
        bound.expect("an address");
        socket
            .set_recv_buffer_size(RECEIVE_BUFFER)
            .expect("a small buffer");
        let mut stream = socket.connect(address).await.expect("a connection");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: tidings\r\nAuthorization: Bearer {}\r\n\r\n",
            token(user)
        );
        let written = stream.write_all(request.as_bytes()).await;
        written.expect("a request");
        Self(stream)
    }

    /// Reads after all, until this text has come or the connection ends. Returns
    /// whether it has come.
    pub async fn read_until(&mut self, text: &str) -> bool {
        let mut come = Vec::new();
        while let Ok(1..) = self.0.read_buf(&mut come).await {
            if String::from_utf8_lossy(&come).contains(text) {
                return true;
            }
            // Its last bytes may be the beginning of the text.
            come.drain(..come.len().saturating_sub(text.len()));
        }
        false
    }
}
