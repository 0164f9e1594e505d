//! An identity provider's key server, which can be made to misbehave.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::task::AbortOnDropHandle;

use super::PATIENCE;

/// How the server answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With a set of these keys.
    Keys(Vec<Value>),
    /// With something other than a key set: this status line, these headers, this body.
    Other(String),
    /// Not at all.
    Silence,
    /// With a set that never ends.
    Endless,
    /// By closing the connection.
    Closes,
}

impl Answer {
    /// A status without a body.
    pub fn status(status: &str) -> Self {
        Self::Other(format!("{status}\r\nContent-Length: 0"))
    }

    pub fn body(body: &str) -> Self {
        Self::Other(format!(
            "200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

/// A key server. Dropping it closes it.
pub struct KeyServer {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: watch::Receiver<Vec<String>>,
    /// The most bytes written for a single response.
    written: watch::Receiver<usize>,
    _accepting: AbortOnDropHandle<()>,
}

impl KeyServer {
    pub async fn start(answer: Answer) -> Self {
        Self::start_at("127.0.0.1:0", answer, None).await
    }

    /// The same over HTTPS.
    pub async fn start_tls(answer: Answer, tls: ServerConfig) -> Self {
        let tls = TlsAcceptor::from(Arc::new(tls));
        Self::start_at("127.0.0.1:0", answer, Some(tls)).await
    }

    async fn start_at(address: &str, answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let answer = Arc::new(Mutex::new(answer));
        let (ask, asked) = watch::channel(Vec::new());
        let (write, written) = watch::channel(0);
        let says = Arc::clone(&answer);
        let accepting = tokio::spawn(async move {
            let (ask, write) = (Arc::new(ask), Arc::new(write));
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, says) = (tls.clone(), Arc::clone(&says));
                let (ask, write) = (Arc::clone(&ask), Arc::clone(&write));
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &says, &ask, &write).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &says, &ask, &write).await,
                            Err(_) => None,
                        },
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            answer,
            asked,
            written,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn url(&self) -> String {
        format!("http://{}/keys.json", self.address)
    }

    /// Sets the answer from the next request on.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().expect("an answer") = answer;
    }

    /// The first lines of the requests received so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }

    /// Waits until this many requests have been received.
    pub async fn until_asked(&self, count: usize) {
        let mut asked = self.asked.clone();
        let waiting = timeout(PATIENCE, asked.wait_for(|asked| asked.len() >= count)).await;
        waiting.expect("it is asked").expect("a server");
    }

    /// The most bytes written for a single response.
    pub fn written(&self) -> usize {
        *self.written.borrow()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &Mutex<Answer>,
    ask: &watch::Sender<Vec<String>>,
    write: &watch::Sender<usize>,
) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let line = request.lines().next().unwrap_or_default().to_owned();
    let answer = answer.lock().expect("an answer").clone();
    ask.send_modify(|asked| asked.push(line));
    let answer = match answer {
        Answer::Keys(keys) => Answer::body(&json!({ "keys": keys }).to_string()),
        answer => answer,
    };
    match answer {
        Answer::Other(text) => {
            let end = if text.contains("\r\n\r\n") {
                ""
            } else {
                "\r\n\r\n"
            };
            let text = format!("HTTP/1.1 {text}{end}");
            stream.write_all(text.as_bytes()).await.ok()?;
            stream.shutdown().await.ok()
        }
        Answer::Endless => {
            let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"keys\":[";
            stream.write_all(head).await.ok()?;
            let more = vec![b' '; 64 << 10];
            let mut written = 0;
            loop {
                written += stream.write(&more).await.ok()?;
                write.send_modify(|most| *most = written.max(*most));
            }
        }
        Answer::Silence => {
            // Wait until the client closes the connection.
            stream.read_u8().await.ok()?;
            None
        }
        Answer::Keys(_) | Answer::Closes => None,
    }
}
