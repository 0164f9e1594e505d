//! A plain port that leads into TLS, for the client that knows HTTP/1.1 alone.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use rustls::pki_types::ServerName;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use super::authority::Authority;
use crate::support::{bridge::token, event_source::EventSource, until};

/// The name that certificates of bridges are for.
pub const ORIGIN: &str = "localhost";

/// Whatever address the system chooses for a client.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A connection to a bridge, by a client that believes `authority` alone.
pub async fn connect(
    address: SocketAddr,
    authority: &Authority,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_from(ANY, address, authority, protocol).await
}

/// The same, by a client that has this address.
pub async fn connect_from(
    client: IpAddr,
    address: SocketAddr,
    authority: &Authority,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(authority.client(protocol));
    let socket = TcpSocket::new_v4()?;
    socket.bind((client, 0).into())?;
    let socket = socket.connect(address).await?;
    let name = ServerName::try_from(ORIGIN).expect("a name");
    connector.connect(name, socket).await
}

/// The port. Dropping it closes it; what goes through it stays.
pub struct Tunnel {
    pub address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Tunnel {
    pub async fn to(bridge: SocketAddr, authority: Arc<Authority>) -> Self {
        Self::between(ANY, bridge, authority).await
    }

    /// One whose far end sees clients come from this address.
    pub async fn between(client: IpAddr, bridge: SocketAddr, authority: Arc<Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepting = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let authority = Arc::clone(&authority);
                tokio::spawn(async move {
                    let mut far = connect_from(client, bridge, &authority, "http/1.1").await?;
                    assert_eq!(far.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                    copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Self {
            address,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// A stream of `user` that is live.
    pub async fn stream(&self, user: &str) -> EventSource {
        let bearer = format!("Bearer {}", token(user));
        let headers = [("Authorization", bearer.as_str())];
        let mut source = EventSource::open(self.address, "/stream", &headers).await;
        until(&mut source, "tidings.caught-up").await;
        source
    }
}
