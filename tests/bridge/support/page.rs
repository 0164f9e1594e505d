//! An empty page of another server.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\
    Connection: close\r\n\r\n<!doctype html>";

/// The page's server. Dropping it stops it.
pub struct Page {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Page {
    pub async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        let serving = async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream));
            }
        };
        Self {
            address,
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn answer(mut stream: TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let _ = stream.write_all(PAGE.as_bytes()).await;
}
