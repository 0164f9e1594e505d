//! The response to a request.

use std::io;

use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::{
    EventSource,
    body::{Body, End, Framing, position},
};
use crate::support::PATIENCE;

/// The response to a request, with its body not yet read.
#[derive(Debug)]
pub(crate) struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

impl Response {
    /// Reads up to the body. Panics if the response isn't valid HTTP/1.1.
    pub(super) async fn read(mut stream: TcpStream) -> io::Result<Self> {
        const END: &[u8] = b"\r\n\r\n";
        let mut received = Vec::new();
        let end = loop {
            if let Some(at) = position(&received, END) {
                break at;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let rest = received.split_off(end + END.len());
        let head = String::from_utf8_lossy(&received[..end]);
        let (status_line, lines) = head.split_once("\r\n").unwrap_or((&head, ""));
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|line| line.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
        let headers: Vec<(String, String)> = lines.lines().map(parse_header).collect();
        let framing = Framing::of(
            find(&headers, "Transfer-Encoding"),
            find(&headers, "Content-Length"),
        );
        Ok(Self {
            status,
            headers,
            body: Body::new(stream, rest, framing),
        })
    }

    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// The value of the first header with this name, ignoring case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The whole body. Panics if it is cut short or doesn't arrive in time.
    pub(crate) async fn text(mut self) -> String {
        let mut text = Vec::new();
        let reading = async {
            loop {
                match self.body.read().await {
                    Ok(piece) => text.extend(piece),
                    Err(end) => return end,
                }
            }
        };
        let end = timeout(PATIENCE, reading).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(end, Ok(End::Clean), "the body was cut short: {text}");
        text
    }

    /// Reads the body as an event stream. Panics with the status and the body if it isn't one.
    pub(crate) async fn into_events(self) -> EventSource {
        let kind = self.header("Content-Type").unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if self.status != 200 || !essence.eq_ignore_ascii_case("text/event-stream") {
            let (status, kind) = (self.status, kind.to_owned());
            panic!(
                "not an event stream but {status} {kind:?}: {}",
                self.text().await
            );
        }
        EventSource::new(self.body)
    }
}

fn parse_header(line: &str) -> (String, String) {
    let (name, value) = line
        .split_once(':')
        .unwrap_or_else(|| panic!("not a header: {line:?}"));
    (name.to_owned(), value.trim().to_owned())
}

fn find<'a>(headers: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::super::{get, server::serve};

    #[tokio::test]
    #[should_panic(expected = "the body was cut short: half")]
    async fn fails_on_half_a_body() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf";
        let (addr, _) = serve(answer, async |_| ()).await;
        get(addr, "/", &[]).await.unwrap().text().await;
    }

    #[tokio::test]
    #[should_panic(expected = "not an event stream but 404 \"text/plain\": no such")]
    async fn fails_on_what_is_no_stream() {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\
            Content-Length: 7\r\n\r\nno such";
        let (addr, _) = serve(answer, async |_| ()).await;
        get(addr, "/", &[]).await.unwrap().into_events().await;
    }
}
