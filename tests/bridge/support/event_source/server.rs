//! A server for the tests of this client.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Answers one request with `answer`, one byte at a time, and then runs `last` on the connection.
/// Returns the server's address, and a task that returns the request.
pub(super) async fn serve<F: Future<Output = ()> + Send>(
    answer: &'static str,
    last: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("its address");
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.set_nodelay(true).expect("an open socket");
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") && !asked.ends_with(b"}") {
            stream.read_buf(&mut asked).await.expect("a request");
        }
        for byte in answer.as_bytes() {
            stream.write_all(&[*byte]).await.expect("a reader");
            tokio::task::yield_now().await;
        }
        last(stream).await;
        String::from_utf8(asked).expect("text")
    });
    (addr, served)
}
