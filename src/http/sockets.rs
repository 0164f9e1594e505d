//! Limits the sockets of clients: their number, and the memory that each can hold.
//!
//! Most sockets carry streams. For those whose request never completes, there is no other
//! limit.

use std::{net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tracing::warn;

use crate::{
    auth::{
        client_addr::{Client, Proxies},
        rejections::{RejectReason, Rejections},
    },
    config::LimitOptions,
    runtime::counter_map::CounterMap,
};

/// A client that doesn't read what was sent to it is disconnected after this time, and so
/// is one that has not sent the head of its request.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// The most bytes that the kernel may buffer for one client. Buffered bytes count as
/// sent, so the buffer is small.
const CLIENT_BUFFER: usize = 128 << 10;

/// The least number of sockets allowed in addition to those of streams, for requests that
/// are being answered. A quarter of the number of streams is added.
const SPARE: usize = 64;

/// Open files besides those of clients and of the pool: the listener, the log, the
/// servers' own.
const OTHER_FILES: u64 = 64;

/// Counts sockets in total and by client.
#[derive(Debug)]
pub struct Sockets {
    most: usize,
    max_per_client: usize,
    proxies: Proxies,
    rejections: Arc<Rejections>,
    open: Mutex<OpenSockets>,
}

#[derive(Debug, Default)]
struct OpenSockets {
    all: usize,
    clients: CounterMap<Client>,
}

/// A socket's place, held for as long as the connection and released on drop.
pub struct SocketPermit {
    sockets: Arc<Sockets>,
    /// `None` for a trusted proxy, because many clients are behind it.
    client: Option<Client>,
}

impl Sockets {
    /// The limits follow from those of streams, with some spare sockets.
    pub fn new(limits: &LimitOptions, proxies: Proxies, rejections: Arc<Rejections>) -> Self {
        Self {
            most: most(limits),
            max_per_client: with_spare(limits.max_connections_per_address),
            proxies,
            rejections,
            open: Mutex::default(),
        }
    }

    /// Sets the options of a connection that was just accepted, and reserves a place for
    /// it. `None` if its client has too many, or all places are taken; it must then be
    /// closed. An `EventSource` treats that as a network failure, and reconnects.
    pub fn on_connect(self: &Arc<Self>, tcp: &TcpStream) -> Option<SocketPermit> {
        bound(tcp);
        // Without an address, the client has already disconnected.
        let peer = tcp.peer_addr().ok()?;
        let place = self.place(peer.ip());
        place
            .inspect_err(|&client| self.rejections.count(RejectReason::Sockets, client))
            .ok()
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.lock().all
    }

    fn place(self: &Arc<Self>, address: IpAddr) -> Result<SocketPermit, Client> {
        let client = Client::from(address);
        let counted = (!self.proxies.trust(address)).then_some(client);
        let mut open = self.open.lock();
        let has_too_many =
            counted.is_some_and(|client| open.clients.of(&client) >= self.max_per_client);
        if open.all >= self.most || has_too_many {
            return Err(client);
        }
        open.all += 1;
        if let Some(client) = counted {
            open.clients.add(client);
        }
        drop(open);
        Ok(SocketPermit {
            sockets: Arc::clone(self),
            client: counted,
        })
    }
}

impl Drop for SocketPermit {
    fn drop(&mut self) {
        let mut open = self.sockets.open.lock();
        open.all -= 1;
        if let Some(client) = &self.client {
            open.clients.remove(client);
        }
    }
}

/// The most sockets that may be open in total.
pub fn most(limits: &LimitOptions) -> usize {
    with_spare(limits.max_connections)
}

/// Warns if the limit of open files is too low. Each client is an open file, and a client
/// whose socket can't be opened gets no response at all.
pub fn warn_of_few_files(limits: &LimitOptions, pool_size: u16) {
    let sockets = u64::try_from(most(limits)).unwrap_or(u64::MAX);
    let needed = sockets + u64::from(pool_size) + OTHER_FILES;
    if let Ok((allowed, _)) = rlimit::Resource::NOFILE.get()
        && allowed < needed
    {
        warn!(
            needed,
            allowed,
            "TIDINGS_MAX_CONNECTIONS={} needs up to {needed} open files, but the system allows \
             {allowed}: raise that limit (ulimit -n, LimitNOFILE=), or lower the setting",
            limits.max_connections
        );
    }
}

fn with_spare(streams: u32) -> usize {
    let streams = streams as usize;
    streams + streams / 4 + SPARE
}

/// Limits what the kernel holds for a client that stopped responding. If the system
/// refuses an option, the client is still served.
pub fn bound(socket: &TcpStream) {
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(CLIENT_LIMIT)
        .with_interval(CLIENT_LIMIT / 3);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(CLIENT_BUFFER);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(CLIENT_LIMIT));
}
