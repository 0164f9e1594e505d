//! A client that has all its streams in one connection.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::{Request, Response, StatusCode, request::Builder};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{authority::Authority, tunnel::connect};
use crate::support::{PATIENCE, bridge::token};

/// How many bytes a server may send on a stream, and on a connection, before the client enlarges
/// the window. This is the default of HTTP/2.
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
        Self::with_window(address, authority, WINDOW).await
    }

    /// A client with a receive window of this many bytes per stream.
    pub async fn with_window(address: SocketAddr, authority: &Authority, window: usize) -> Self {
        let socket = connect(address, authority, "h2").await.expect("TLS");
        assert_eq!(socket.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let window = u32::try_from(window).expect("a window");
        let mut client = h2::client::Builder::new();
        let handshake = client.initial_window_size(window).handshake(socket);
        let (requests, connection) = handshake.await.expect("HTTP/2");
        let driver = tokio::spawn(async move {
            // It ends with the server or with the test.
            let _ = connection.await;
        });
        Self {
            requests,
            _driver: AbortOnDropHandle::new(driver),
        }
    }

    pub async fn open(&self, user: &str) -> Stream {
        let request = Request::get("https://localhost/stream")
            .header("authorization", format!("Bearer {}", token(user)));
        self.open_with(request).await
    }

    /// Opens a stream with a ticket.
    pub async fn open_by_ticket(&self, ticket: &str) -> Stream {
        let target = format!("https://localhost/stream?ticket={ticket}");
        self.open_with(Request::get(target)).await
    }

    /// Opens a stream with any request.
    pub async fn open_with(&self, request: Builder) -> Stream {
        let (answer, request) = self.ask(request).await;
        let response = answer.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        Stream {
            body: response.into_body(),
            request,
            text: String::new(),
        }
    }

    /// Returns the response to a request, and the sending half of its stream, which the caller must
    /// keep.
    pub async fn ask(
        &self,
        request: Builder,
    ) -> (Result<Response<RecvStream>, h2::Error>, SendStream<Bytes>) {
        let request = request.body(()).expect("a request");
        let mut requests = self.requests.clone().ready().await.expect("a connection");
        let (response, request) = requests.send_request(request, true).expect("a stream");
        let response = timeout(PATIENCE, response).await.expect("an answer");
        (response, request)
    }
}

impl Stream {
    /// Reads until this has been received since the last call.
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

    /// Reads everything that fits in the window, without enlarging it.
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

    /// Enlarges the window after all.
    pub fn release_window(&mut self) {
        let released = self.body.flow_control().release_capacity(WINDOW);
        released.expect("a full window");
    }

    /// Reads until the server ends the stream, and returns what was received.
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

    /// Waits until the server ends the stream, without enlarging the window. If the server reset
    /// it, returns the reason.
    pub async fn until_over(&mut self) -> Option<Reason> {
        let reading = async {
            loop {
                match self.body.data().await {
                    // Without a release, the window stays full.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error.reason(),
                    None => return None,
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("an end")
    }

    /// Closes this stream and leaves the others open, like a closed browser tab.
    pub fn reset(mut self) {
        self.request.send_reset(Reason::CANCEL);
    }
}
