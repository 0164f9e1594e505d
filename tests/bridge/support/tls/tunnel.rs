//! A plain TCP port that forwards into TLS, for the client that supports only HTTP/1.1.

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

/// The name in the bridges' certificates.
pub const ORIGIN: &str = "localhost";

/// Lets the system choose the client's address.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A connection to a bridge from a client that trusts only `authority`.
pub async fn connect(
    address: SocketAddr,
    authority: &Authority,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_from(ANY, address, authority, protocol).await
}

/// The same from a client with this address.
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

/// The port. Dropping it closes it; open connections stay.
pub struct Tunnel {
    pub address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Tunnel {
    pub async fn to(bridge: SocketAddr, authority: Arc<Authority>) -> Self {
        Self::between(ANY, bridge, authority).await
    }

    /// A tunnel with clients that the far end sees as coming from this address.
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

    /// A live stream of `user`.
    pub async fn stream(&self, user: &str) -> EventSource {
        let bearer = format!("Bearer {}", token(user));
        let headers = [("Authorization", bearer.as_str())];
        let mut source = EventSource::open(self.address, "/stream", &headers).await;
        until(&mut source, "tidings.caught-up").await;
        source
    }
}
