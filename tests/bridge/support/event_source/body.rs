//! The body of a response, and where it ends.

use tokio::{io::AsyncReadExt, net::TcpStream};

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// At the end that the server announced.
    Clean,
    /// Before that end, or with a reset.
    Cut,
}

#[derive(Debug)]
pub(super) struct Body {
    stream: TcpStream,
    /// Bytes received but not yet consumed.
    received: Vec<u8>,
    framing: Framing,
}

impl Body {
    pub(super) fn new(stream: TcpStream, received: Vec<u8>, framing: Framing) -> Self {
        Self {
            stream,
            received,
            framing,
        }
    }

    /// More bytes of the body, at least one, or how it ended. Cancel-safe.
    pub(super) async fn read(&mut self) -> Result<Vec<u8>, End> {
        loop {
            match self.framing.take(&mut self.received) {
                Some(piece) if piece.is_empty() => return Err(End::Clean),
                Some(piece) => return Ok(piece),
                None => {}
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => return Err(End::Cut),
                Ok(_) => {}
            }
        }
    }

    /// Breaks the connection: the server receives an RST instead of a FIN.
    pub(super) fn reset(self) {
        self.stream.set_zero_linger().expect("the socket is open");
    }
}

/// How the end of a body is determined.
#[derive(Debug)]
pub(super) enum Framing {
    /// By an empty last chunk.
    Chunked,
    /// By this many remaining bytes.
    Length(usize),
}

impl Framing {
    /// Panics if neither header is present; the bridge always sends one of them.
    pub(super) fn of(transfer_encoding: Option<&str>, content_length: Option<&str>) -> Self {
        match (transfer_encoding, content_length) {
            (Some("chunked"), _) => Self::Chunked,
            (None, Some(length)) => {
                Self::Length(length.parse().expect("Content-Length is a number"))
            }
            headers => panic!("no telling where the body ends: {headers:?}"),
        }
    }

    /// The next piece of the body if it has been received. An empty piece is the end.
    fn take(&mut self, received: &mut Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::Chunked => {
                let chunk = take_chunk(received)?;
                if chunk.is_empty() {
                    *self = Self::Length(0);
                }
                Some(chunk)
            }
            Self::Length(left) => {
                let piece: Vec<u8> = received.drain(..received.len().min(*left)).collect();
                let is_end = *left == 0;
                *left -= piece.len();
                (is_end || !piece.is_empty()).then_some(piece)
            }
        }
    }
}

/// Takes the first chunk if it has been received completely. Panics if it violates HTTP, or uses
/// extensions or trailers, which the bridge never sends.
fn take_chunk(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    const LINE_END: &[u8] = b"\r\n";
    let size_end = position(received, LINE_END)?;
    let size = String::from_utf8_lossy(&received[..size_end]);
    let size = usize::from_str_radix(&size, 16)
        .unwrap_or_else(|error| panic!("{size:?} is no size of a chunk: {error}"));
    let start = size_end + LINE_END.len();
    let end = start + size;
    let next = end + LINE_END.len();
    if received.len() < next {
        return None;
    }
    assert_eq!(
        received[end..next],
        *LINE_END,
        "a chunk is longer than it said"
    );
    let chunk = received[start..end].to_vec();
    received.drain(..next);
    Some(chunk)
}

/// The index at which `wanted` begins in `bytes`.
pub(super) fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a body that is received byte by byte.
    fn pieces(mut framing: Framing, body: &str) -> Vec<String> {
        let mut received = Vec::new();
        let take = |byte| {
            received.push(byte);
            framing.take(&mut received)
        };
        body.bytes()
            .filter_map(take)
            .map(|piece| String::from_utf8(piece).unwrap())
            .collect()
    }

    #[test]
    fn takes_a_chunk_once_all_of_it_has_come() {
        assert_eq!(
            pieces(
                Framing::Chunked,
                "3\r\na\r\n\r\nC\r\n0123456789ab\r\n0\r\n\r\n"
            ),
            ["a\r\n", "0123456789ab", ""]
        );
        assert_eq!(pieces(Framing::Chunked, "3\r\nabc\r"), [""; 0]);
    }

    #[test]
    #[should_panic(expected = "a chunk is longer than it said")]
    fn fails_on_a_chunk_of_another_size() {
        pieces(Framing::Chunked, "3\r\nabcd\r\n");
    }

    #[test]
    fn ends_at_the_length() {
        let (mut framing, mut received) = (Framing::Length(2), b"ok".to_vec());
        assert_eq!(framing.take(&mut received), Some(b"ok".to_vec()));
        assert_eq!(framing.take(&mut received), Some(vec![]));
    }
}
