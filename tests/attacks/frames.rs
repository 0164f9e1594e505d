//! A client that sends HTTP/2 frame by frame and ignores all limits.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::support::tls::{authority::Authority, tunnel::connect};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames, and flags.
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// `GET https:/index.html`, a path that doesn't exist, encoded with entries of HPACK's
/// static table.
pub const NOWHERE: &[u8] = &[0x82, 0x87, 0x85];

/// The client's side of the connection.
pub struct Frames(WriteHalf<TlsStream<TcpStream>>);

/// The server's side of the connection.
pub struct Answers(ReadHalf<TlsStream<TcpStream>>);

/// A connection whose streams have no flow-control window.
pub async fn connect_without_room(address: SocketAddr, authority: &Authority) -> (Frames, Answers) {
    let socket = connect(address, authority, "h2").await.expect("TLS");
    let (answers, writing) = split(socket);
    let mut frames = Frames(writing);
    let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
    settings.extend(0_u32.to_be_bytes());
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &settings));
    frames.send(&bytes).await.expect("a connection");
    (frames, Answers(answers))
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The `number`-th request of a connection, without a body.
pub fn request(number: u32, headers: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, headers)
}

/// A request whose headers never end: its first frame, and the ones that follow.
pub fn endless_request(number: u32) -> (Vec<u8>, Vec<u8>) {
    let stream = 2 * number + 1;
    // A header `x` of 100 bytes, not indexed.
    let mut line = vec![0x00, 1, b'x', 100];
    line.extend([b'y'; 100]);
    (
        frame(HEADERS, END_STREAM, stream, NOWHERE),
        frame(CONTINUATION, 0, stream, &line),
    )
}

/// Cancels a request.
pub fn reset(number: u32) -> Vec<u8> {
    const CANCEL: u32 = 8;
    frame(RST_STREAM, 0, 2 * number + 1, &CANCEL.to_be_bytes())
}

impl Frames {
    /// Fails once the server has closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Closes the connection.
    pub async fn close(mut self) {
        // The server may have closed it already.
        let _ = self.0.shutdown().await;
    }
}

impl Answers {
    /// The next frame: its type and its payload. None at the end.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], payload))
    }

    /// The number of frames of each type until the end.
    pub async fn count(mut self) -> BTreeMap<u8, usize> {
        let mut counts = BTreeMap::new();
        while let Some((kind, _)) = self.next().await {
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }
}
