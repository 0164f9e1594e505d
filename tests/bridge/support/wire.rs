//! A connection on which a test writes a request byte for byte, including requests that no
//! well-behaved client sends.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    PATIENCE,
    tls::{authority::Authority, tunnel::connect},
};

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// The connection. Dropping it closes it.
pub struct Wire {
    stream: Box<dyn Duplex>,
    received: Vec<u8>,
}

/// The part of a response before its body.
#[derive(Debug)]
pub struct Head {
    pub version: String,
    pub status: u16,
    /// By lower-case name, without `date`.
    pub headers: BTreeMap<String, String>,
}

impl Head {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    }
}

impl Wire {
    /// Connects and sends these bytes.
    pub async fn plain(address: SocketAddr, request: impl AsRef<[u8]>) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        Self::send(stream, request.as_ref()).await
    }

    /// The same over TLS.
    pub async fn tls(
        address: SocketAddr,
        authority: &Authority,
        request: impl AsRef<[u8]>,
    ) -> Self {
        let stream = connect(address, authority, "http/1.1").await.expect("TLS");
        Self::send(stream, request.as_ref()).await
    }

    async fn send(mut stream: impl Duplex + 'static, request: &[u8]) -> Self {
        stream.write_all(request).await.expect("it is sent");
        Self {
            stream: Box::new(stream),
            received: Vec::new(),
        }
    }

    /// Reads up to `wanted` and returns what came before it.
    pub async fn until(&mut self, wanted: &str) -> String {
        let wanted = wanted.as_bytes();
        loop {
            let mut windows = self.received.windows(wanted.len());
            if let Some(at) = windows.position(|part| part == wanted) {
                let rest = self.received.split_off(at + wanted.len());
                let before = std::mem::replace(&mut self.received, rest);
                return String::from_utf8_lossy(&before[..at]).into_owned();
            }
            let reading = self.stream.read_buf(&mut self.received);
            let read = timeout(PATIENCE, reading).await.expect("an answer");
            assert_ne!(
                read.expect("it is open"),
                0,
                "it ended after {}",
                String::from_utf8_lossy(&self.received)
            );
        }
    }

    /// Reads up to the body.
    pub async fn head(&mut self) -> Head {
        let head = self.until("\r\n\r\n").await;
        let mut lines = head.split("\r\n");
        let status = lines.next().expect("a line");
        let (version, rest) = status.split_once(' ').expect(status);
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').expect(line);
            (name.to_lowercase(), value.trim().to_owned())
        });
        Head {
            version: version.to_owned(),
            status: rest[..3].parse().expect(status),
            headers: headers.filter(|(name, _)| name != "date").collect(),
        }
    }

    /// Reads until the server closes the connection cleanly.
    pub async fn rest(mut self) -> String {
        let reading = self.stream.read_to_end(&mut self.received);
        let read = timeout(PATIENCE, reading).await.expect("an end");
        read.expect("an end in order");
        String::from_utf8_lossy(&self.received).into_owned()
    }
}
