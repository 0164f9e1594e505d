//! HTTP/1.1 requests, each on its own connection.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use tokio::{io::AsyncWriteExt, net::TcpSocket, time::timeout};

use super::Response;
use crate::support::PATIENCE;

pub(super) type Headers<'a> = &'a [(&'a str, &'a str)];

/// Lets the system choose the client's address.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Requests `path`. The response may have any status; an error means that there was no response.
/// Panics if neither arrives in time.
pub(crate) async fn get(
    addr: SocketAddr,
    path: &str,
    headers: Headers<'_>,
) -> io::Result<Response> {
    get_from(ANY, addr, path, headers).await
}

/// The same from a client with this address.
pub(crate) async fn get_from(
    client: IpAddr,
    addr: SocketAddr,
    path: &str,
    headers: Headers<'_>,
) -> io::Result<Response> {
    request(client, addr, "GET", path, headers, "").await
}

/// Sends an OPTIONS request for `path`. Returns the same as [`get`].
pub(crate) async fn options(
    addr: SocketAddr,
    path: &str,
    headers: Headers<'_>,
) -> io::Result<Response> {
    request(ANY, addr, "OPTIONS", path, headers, "").await
}

/// Posts JSON to `path`, or another type if the headers contain a `Content-Type`. Returns the same
/// as [`get`].
pub(crate) async fn post(
    addr: SocketAddr,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> io::Result<Response> {
    let length = body.len().to_string();
    let defaults = [
        ("Content-Type", "application/json"),
        ("Content-Length", length.as_str()),
    ];
    let headers = with_defaults(headers, &defaults);
    request(ANY, addr, "POST", path, &headers, body).await
}

async fn request(
    client: IpAddr,
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: Headers<'_>,
    body: &str,
) -> io::Result<Response> {
    let host = addr.to_string();
    let mut message = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in with_defaults(headers, &[("Host", &host)]) {
        message.push_str(&format!("{name}: {value}\r\n"));
    }
    message.push_str("\r\n");
    message.push_str(body);

    let exchange = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((client, 0).into())?;
        let mut stream = socket.connect(addr).await?;
        stream.write_all(message.as_bytes()).await?;
        Response::read(stream).await
    };
    timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| panic!("no answer to {method} {path} within {PATIENCE:?}"))
}

/// The headers, plus those of `defaults` whose names they don't contain.
pub(super) fn with_defaults<'a>(
    headers: Headers<'a>,
    defaults: Headers<'a>,
) -> Vec<(&'a str, &'a str)> {
    let is_given = |wanted: &str| {
        headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    let missing = defaults.iter().filter(|(name, _)| !is_given(name));
    headers.iter().chain(missing).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::{super::server::serve, *};

    #[tokio::test]
    async fn posts_json() {
        let answer = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok";
        let (addr, asked) = serve(answer, async |_| ()).await;
        let response = post(addr, "/p", &[("host", "h"), ("X", "y")], r#"{"a":1}"#)
            .await
            .unwrap();
        assert_eq!(
            (response.status(), response.header("x-a")),
            (201, Some("b"))
        );
        assert_eq!(response.header("absent"), None);
        assert_eq!(response.text().await, "ok");
        assert_eq!(
            asked.await.unwrap(),
            "POST /p HTTP/1.1\r\nhost: h\r\nX: y\r\nContent-Type: application/json\r\n\
             Content-Length: 7\r\n\r\n{\"a\":1}"
        );
    }

    #[tokio::test]
    async fn tells_when_there_is_no_answer() {
        let (addr, _) = serve("HTTP/1.1 2", async |_| ()).await;
        let error = get(addr, "/", &[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
