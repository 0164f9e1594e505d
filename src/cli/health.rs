//! `tidings health`: asks a bridge on this machine whether it is ready, for the health
//! checks of containers. Its image has neither a shell nor an HTTP client.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::config::HealthOptions;

/// How long an answer may take; it is a matter of milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer has some hundreds of bytes.
const ANSWER_BYTES: u64 = 64 << 10;

/// Why a bridge does not pass for healthy.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing answers.
    #[error("no bridge answers at {address} (TIDINGS_ADMIN_LISTEN): {reason}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: io::Error,
    },
    /// It takes too long.
    #[error("the bridge at {0} did not answer within {limit} s", limit = LIMIT.as_secs())]
    Silent(SocketAddr),
    /// Something else answers.
    #[error("what answers at {0} (TIDINGS_ADMIN_LISTEN) is no bridge")]
    Stranger(SocketAddr),
    /// It says so itself.
    #[error("the bridge at {address} is not ready: {reason}")]
    NotReady {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Asks.
///
/// # Errors
///
/// [`ProbeError`], within five seconds, unless it is ready.
pub async fn run(options: &HealthOptions) -> Result<(), ProbeError> {
    let address = reachable(options.admin_listen);
    let answer = timeout(LIMIT, ask(address)).await;
    let answer = answer.map_err(|_| ProbeError::Silent(address))?;
    let answer = answer.map_err(|reason| ProbeError::Unreachable { address, reason })?;
    let stranger = || ProbeError::Stranger(address);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(stranger)?;
    let status = head.split(' ').nth(1).ok_or_else(stranger)?;
    let body: Value = serde_json::from_str(body).map_err(|_| stranger())?;
    match (status, body["status"].as_str()) {
        ("200", Some(_)) => Ok(()),
        (_, Some(status)) => {
            let reason = body["reason"].as_str().unwrap_or(status).to_owned();
            Err(ProbeError::NotReady { address, reason })
        }
        (_, None) => Err(stranger()),
    }
}

/// What listens on every address is asked on this machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, address.port()).into()
}

/// In the older version of HTTP, whose answers end with the connection.
async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /health/ready HTTP/1.0\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
