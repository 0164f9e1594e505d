//! A client that has all its streams in one connection.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{Request, StatusCode};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{authority::Authority, tunnel::connect};
use crate::support::{PATIENCE, bridge::token};

/// What a server may send on a stream, and on a connection, before it is told
/// that there is room for more. This client never said anything else.
const WINDOW: usize = 65_535;

/// A connection over HTTP/2. Dropping it closes it.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    _driver: AbortOnDropHandle<()>,
}

/// One open event stream.
pub struct Stream {
    body: RecvStream,
    request: SendStream<Bytes>,
    text: String,
}

impl Http2 {
    pub async fn connect(address: SocketAddr, authority: &Authority) -> Self {
        let socket = connect(address, authority, "h2").await.expect("TLS");
        assert_eq!(socket.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (requests, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
        let driver = tokio::spawn(async move {
            // It ends with the server, or with the test.
            let _ = connection.await;
        });
        Self {
            requests,
            _driver: AbortOnDropHandle::new(driver),
        }
    }

    pub async fn open(&self, user: &str) -> Stream {
        let request = Request::get("https://localhost/stream")
            .header("authorization", format!("Bearer {}", token(user)))
            .body(())
            .expect("a request");
        let mut requests = self.requests.clone().ready().await.expect("a connection");
        let (response, request) = requests.send_request(request, true).expect("a stream");
        let response = timeout(PATIENCE, response).await.expect("an answer");
        let response = response.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        Stream {
            body: response.into_body(),
            request,
            text: String::new(),
        }
    }
}

impl Stream {
    /// Reads until this has come since the last call.
    pub async fn until(&mut self, wanted: &str) {
        let reading = async {
            loop {
                if let Some(at) = self.text.find(wanted) {
                    self.text.drain(..at + wanted.len());
                    return;
                }
                let bytes = self.body.data().await.expect("more").expect("bytes");
                let _ = self.body.flow_control().release_capacity(bytes.len());
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        if timeout(PATIENCE, reading).await.is_err() {
            panic!("never {wanted:?}, but {:?}", self.text);
        }
    }

    /// Reads all that the server may send, and doesn't say that there is room
    /// again.
    pub async fn fill_window(&mut self) {
        let reading = async {
            let mut left = WINDOW;
            while left > 0 {
                let bytes = self.body.data().await.expect("more").expect("bytes");
                self.text.push_str(&String::from_utf8_lossy(&bytes));
                left -= bytes.len();
            }
        };
        let outcome = timeout(PATIENCE, reading).await;
        outcome.expect("as much as there is room for");
    }

    /// Says it after all.
    pub fn release_window(&mut self) {
        let released = self.body.flow_control().release_capacity(WINDOW);
        released.expect("a full window");
    }

    /// Reads to the end that the server makes, and returns what came.
    pub async fn rest(mut self) -> String {
        let reading = async {
            while let Some(bytes) = self.body.data().await {
                let bytes = bytes.expect("a clean end");
                let _ = self.body.flow_control().release_capacity(bytes.len());
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        timeout(PATIENCE, reading).await.expect("an end");
        self.text
    }

    /// Closes this stream and leaves the others, as a tab does that is closed.
    pub fn reset(mut self) {
        self.request.send_reset(Reason::CANCEL);
    }
}
