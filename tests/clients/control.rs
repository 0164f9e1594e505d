//! The server that provides the adapters with pages and tokens and receives the reports
//! of pages.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use tidings::domain::identity::LEEWAY;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::Instant,
};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use crate::{adapter::frame, cutter::Trouble, support::bridge::SECRET};

/// The longest request head; those of browsers take about a kilobyte.
const HEAD_BYTES: usize = 64 << 10;

/// How long a token is valid that must expire during the test: the shortest time in
/// which `tidings.expiring` and the client's reaction to it can be distinguished.
pub const SHORT_SECONDS: u64 = 6;

/// How many of a stream's first tokens are short-lived.
const SHORT_TOKENS: usize = 2;

/// A request head, and the first bytes of the body.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The unmodified bytes.
    pub head: Vec<u8>,
}

/// Reads a request head. Dropping the future before it is complete loses no data only
/// if nothing has been received yet.
pub async fn read_request(client: &mut TcpStream) -> io::Result<Request> {
    // A request usually arrives in one piece, without waiting for further bytes.
    client.readable().await?;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 || head.len() > HEAD_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let line = String::from_utf8_lossy(&head).into_owned();
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    Ok(Request {
        method: word(),
        path: word(),
        head,
    })
}

/// A response after which the connection is closed.
#[derive(Debug)]
pub struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Answer {
    pub fn html(body: &str) -> Self {
        Self::of("text/html; charset=utf-8", body.as_bytes().to_vec())
    }

    fn of(content_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            status: "200 OK",
            content_type,
            body,
        }
    }

    pub async fn write(&self, client: &mut TcpStream) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: {}\r\ncontent-length: {}\r\n\
             access-control-allow-origin: *\r\ncache-control: no-store\r\nconnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        );
        client.write_all(head.as_bytes()).await?;
        client.write_all(&self.body).await?;
        client.shutdown().await
    }
}

/// Issues tokens to streams: the users are indexed by the number of their stream.
#[derive(Debug)]
pub struct Tokens {
    pub users: Vec<String>,
    /// Creates tickets, as the application does.
    pub database: Client,
    /// How many tokens each stream has received.
    pub given: Vec<Mutex<usize>>,
    /// When the first token of each stream expires, once it was issued.
    pub expired: Vec<Arc<OnceLock<Instant>>>,
}

/// A server for one run.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    tokens: Tokens,
    index: String,
    /// Pages and libraries; nothing outside these folders is served.
    folders: Vec<PathBuf>,
    reports: mpsc::UnboundedSender<String>,
}

impl Control {
    /// Lines that pages report are sent to `reports`. `index` creates the first page.
    pub async fn start(
        listener: TcpListener,
        tokens: Tokens,
        index: String,
        folders: Vec<PathBuf>,
        reports: mpsc::UnboundedSender<String>,
    ) -> Self {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            tokens,
            index,
            folders,
            reports,
        });
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let answer = shared.answer(&mut client).await?;
                    answer.write(&mut client).await
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Shared {
    async fn answer(&self, client: &mut TcpStream) -> io::Result<Answer> {
        let request = read_request(client).await?;
        let path = request.path.split('?').next().unwrap_or_default();
        if let Some(stream) = path.strip_prefix("/token/") {
            let stream = stream.parse().map_err(io::Error::other)?;
            return Ok(Answer::of("application/json", self.token(stream).await));
        }
        match path {
            "/" => Ok(Answer::html(&self.index)),
            "/page" => Ok(Answer::html(&frame(""))),
            "/report" => {
                let body = read_body(client, &request).await?;
                for line in body.lines() {
                    let _ = self.reports.send(line.to_owned());
                }
                Ok(Answer::of("text/plain", Vec::new()))
            }
            path => Ok(self.file(path)),
        }
    }

    /// A token and a ticket for a stream's user.
    async fn token(&self, stream: usize) -> Vec<u8> {
        let user = &self.tokens.users[stream];
        let given = {
            let mut given = self.tokens.given[stream].lock().expect("a count");
            *given += 1;
            *given
        };
        let is_short = match Trouble::of(stream) {
            Trouble::Expiring => given <= SHORT_TOKENS,
            Trouble::ExpiredAway => given == 1,
            _ => false,
        };
        let seconds = if is_short { SHORT_SECONDS } else { 3_600 };
        let after = Duration::from_secs(seconds + 1);
        self.tokens.expired[stream].get_or_init(|| Instant::now() + after);
        // A bridge accepts a token for this much longer.
        let expires = get_current_timestamp() + seconds - LEEWAY.as_secs();
        let claims = serde_json::json!({ "sub": user, "exp": expires });
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let token = encode(&Header::default(), &claims, &key).expect("a token");
        let query = "select create_stream_ticket($1, $2 * interval '1 second')";
        let seconds = seconds as f64;
        let row = self
            .tokens
            .database
            .query_one(query, &[user, &seconds])
            .await;
        let ticket: String = row.expect("a ticket").get(0);
        serde_json::json!({ "token": token, "ticket": ticket })
            .to_string()
            .into_bytes()
    }

    /// Libraries import each other without the file extension, as bundlers allow.
    fn file(&self, path: &str) -> Answer {
        let relative = Path::new(path.trim_start_matches('/'));
        let is_inside = !path.contains("..");
        let found = self.folders.iter().find_map(|folder| {
            let file = folder.join(relative);
            [file.clone(), file.with_extension("js")]
                .into_iter()
                .find_map(|file| std::fs::read(file).ok())
        });
        match found.filter(|_| is_inside) {
            Some(body) => Answer::of("text/javascript; charset=utf-8", body),
            None => Answer {
                status: "404 Not Found",
                content_type: "text/plain",
                body: path.as_bytes().to_vec(),
            },
        }
    }
}

async fn read_body(client: &mut TcpStream, request: &Request) -> io::Result<String> {
    let head = String::from_utf8_lossy(&request.head);
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let (length, begin) = (length.unwrap_or(0), "\r\n\r\n");
    let head_end = request
        .head
        .windows(4)
        .position(|end| end == begin.as_bytes())
        .expect("a whole head");
    let mut body = request.head[head_end + 4..].to_vec();
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}
