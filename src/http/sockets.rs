//! Sockets of clients: bounded in what each can hold, and in number. Most are
//! streams; those whose requests never end reach no other limit.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tracing::warn;

use crate::{
    auth::{
        client_addr::{Client, Proxies},
        rejections::{Reason, Refusals},
    },
    config::LimitOptions,
    runtime::counter_map::Tally,
};

/// A client that doesn't take what was sent to it is cut off after this, and so
/// is one that has not sent the head of its request.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// Bytes that the kernel may hold for one client. What is in there counts as
/// sent, so it is kept small.
const CLIENT_BUFFER: usize = 128 << 10;

/// Sockets beside those of the streams that are allowed, at least: for requests
/// that are being answered. A quarter of the streams is added to it.
const SPARE: usize = 64;

/// Open files beside those of clients and of the pool: the listener, the log,
/// the servers' own.
const OTHER_FILES: u64 = 64;

/// Counts sockets.
#[derive(Debug)]
pub struct Sockets {
    most: usize,
    most_a_client: usize,
    proxies: Proxies,
    refusals: Arc<Refusals>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    clients: Tally<Client>,
}

/// A socket's place, which lives as long as the connection. Dropping it gives it
/// back.
pub struct Place {
    sockets: Arc<Sockets>,
    /// None for a proxy's: many clients are behind it.
    client: Option<Client>,
}

impl Sockets {
    /// For so many streams, and some more.
    pub fn new(limits: &LimitOptions, proxies: Proxies, refusals: Arc<Refusals>) -> Self {
        Self {
            most: most(limits),
            most_a_client: with_spare(limits.max_connections_per_address),
            proxies,
            refusals,
            open: Mutex::default(),
        }
    }

    /// Bounds a connection that was just accepted, and gives it a place. None if
    /// its client has too many, or all places are taken: it is to be closed then.
    /// An `EventSource` takes that for a failure of the network, and comes back.
    pub fn take_in(self: &Arc<Self>, tcp: &TcpStream) -> Option<Place> {
        bound(tcp);
        // Without an address it has gone already.
        let peer = tcp.peer_addr().ok()?;
        let place = self.place(peer.ip());
        place
            .inspect_err(|&client| self.refusals.count(Reason::Sockets, client))
            .ok()
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.lock().all
    }

    fn place(self: &Arc<Self>, address: IpAddr) -> Result<Place, Client> {
        let client = Client::from(address);
        let counted = (!self.proxies.trust(address)).then_some(client);
        let mut open = self.lock();
        let has_too_many =
            counted.is_some_and(|client| open.clients.of(&client) >= self.most_a_client);
        if open.all >= self.most || has_too_many {
            return Err(client);
        }
        open.all += 1;
        if let Some(client) = counted {
            open.clients.add(client);
        }
        drop(open);
        Ok(Place {
            sockets: Arc::clone(self),
            client: counted,
        })
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.sockets.lock();
        open.all -= 1;
        if let Some(client) = &self.client {
            open.clients.remove(client);
        }
    }
}

/// Sockets that may be open in all.
pub fn most(limits: &LimitOptions) -> usize {
    with_spare(limits.max_connections)
}

/// Each client is an open file, and one that can't be opened can't be told why.
pub fn warn_of_few_files(limits: &LimitOptions, pool_size: u16) {
    let sockets = u64::try_from(most(limits)).unwrap_or(u64::MAX);
    let needed = sockets + u64::from(pool_size) + OTHER_FILES;
    if let Ok((allowed, _)) = rlimit::Resource::NOFILE.get()
        && allowed < needed
    {
        warn!(
            needed,
            allowed,
            "TIDINGS_MAX_CONNECTIONS={} takes up to {needed} open files, and the system allows \
             {allowed}: raise its limit (ulimit -n, LimitNOFILE=), or lower the setting",
            limits.max_connections
        );
    }
}

fn with_spare(streams: u32) -> usize {
    let streams = streams as usize;
    streams + streams / 4 + SPARE
}

/// Bounds what a client that has gone silent can hold. An option that the
/// system refuses is no reason to refuse the client.
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
