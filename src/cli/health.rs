//! `tidings health`: asks a bridge on this machine whether it is ready, for container
//! health checks. The container image has neither a shell nor an HTTP client.

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

/// Time limit for the response, which normally takes milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Size limit for the response, which normally has some hundred bytes.
const ANSWER_BYTES: u64 = 64 << 10;

/// Why the health check failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("no bridge answers at {address} (TIDINGS_ADMIN_LISTEN)")]
    Unreachable {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the bridge at {0} did not answer within {limit} s", limit = LIMIT.as_secs())]
    Silent(SocketAddr),
    #[error("the server at {0} (TIDINGS_ADMIN_LISTEN) is not a bridge")]
    Stranger(SocketAddr),
    #[error("the bridge at {address} is not ready: {reason}")]
    NotReady { address: SocketAddr, reason: String },
}

/// Asks the bridge whether it is ready.
///
/// # Errors
///
/// [`ProbeError`], within five seconds, unless it is ready.
pub async fn run(options: &HealthOptions) -> Result<(), ProbeError> {
    let address = reachable(options.admin_listen);
    let answer = timeout(LIMIT, ask(address)).await;
    let answer = answer.map_err(|_| ProbeError::Silent(address))?;
    let answer = answer.map_err(|source| ProbeError::Unreachable { address, source })?;
    let stranger = || ProbeError::Stranger(address);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(stranger)?;
    let status = head.split(' ').nth(1).ok_or_else(stranger)?;
    let body: Value = serde_json::from_str(body).map_err(|_| stranger())?;
    // A bridge of an earlier release has only `status`.
    let readiness = body["readiness"].as_str().or(body["status"].as_str());
    match (status, readiness) {
        ("200", Some(_)) => Ok(()),
        (_, Some(readiness)) => {
            let reason = body["reason"].as_str().unwrap_or(readiness).to_owned();
            Err(ProbeError::NotReady { address, reason })
        }
        (_, None) => Err(stranger()),
    }
}

/// The address to connect to: loopback if the bridge listens on all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, address.port()).into()
}

/// Uses HTTP/1.0, where a response ends with the connection.
async fn ask(address: SocketAddr) -> io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET /health/ready HTTP/1.0\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
