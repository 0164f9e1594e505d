//! A network between two parties that a test can break: a TCP port that forwards to another port or
//! to a Unix socket.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::PATIENCE;

/// Where a proxy forwards to.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Network {
    /// They are forwarded.
    Pass,
    /// They are dropped in both directions without notice. Connections can still be opened, as
    /// through a load balancer with a dead server behind it.
    BlackHole,
    /// They arrive this much later.
    Delay(Duration),
    /// At most this many bytes per second are forwarded from the target to the client.
    Throttle(usize),
    /// The connection is reset after this many bytes from the target.
    CutAfter(usize),
    /// New connections are reset immediately; open ones stay open.
    Refuse,
}

/// A TCP port on this machine. Dropping it closes the port and all connections through it.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    target: Arc<Mutex<Target>>,
    /// Incremented to reset all open connections.
    resets: watch::Sender<usize>,
    /// The number of connections accepted so far.
    opened: watch::Receiver<usize>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    pub async fn to(target: Target) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (network, on) = watch::channel(Network::Pass);
        let (resets, on_reset) = watch::channel(0);
        let (opens, opened) = watch::channel(0);
        let target = Arc::new(Mutex::new(target));
        let leads_to = Arc::clone(&target);
        let accepting = tokio::spawn(async move {
            // The connections are closed with the proxy.
            let mut links = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                opens.send_modify(|count| *count += 1);
                let target = leads_to.lock().expect("a target").clone();
                links.spawn(link(client, target, on.clone(), on_reset.clone()));
                while links.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            network,
            target,
            resets,
            opened,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes effect immediately, for open connections too.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Where new connections are forwarded from now on.
    pub fn lead_to(&self, target: Target) {
        *self.target.lock().expect("a target") = target;
    }

    /// Resets all open connections.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }

    /// The number of connections accepted so far.
    pub fn opened(&self) -> usize {
        *self.opened.borrow()
    }

    /// Waits until this many more connections have been accepted, whatever happens to them
    /// afterwards.
    pub async fn until_opened(&self, more: usize) {
        let mut opened = self.opened.clone();
        let wanted = *opened.borrow() + more;
        let coming = opened.wait_for(|count| *count >= wanted);
        let outcome = timeout(PATIENCE, coming).await;
        outcome.expect("connections come").expect("a proxy");
    }
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// One connection, until one side closes it or it is reset.
async fn link(
    client: TcpStream,
    target: Target,
    network: watch::Receiver<Network>,
    mut resets: watch::Receiver<usize>,
) {
    resets.mark_unchanged();
    let _ = client.set_nodelay(true);
    let refused = *network.borrow() == Network::Refuse;
    let server: io::Result<Box<dyn Socket>> = match target {
        _ if refused => Err(io::ErrorKind::ConnectionRefused.into()),
        Target::Tcp(address) => TcpStream::connect(address).await.map(|socket| {
            let _ = socket.set_nodelay(true);
            Box::new(socket) as _
        }),
        Target::Unix(path) => UnixStream::connect(path)
            .await
            .map(|socket| Box::new(socket) as _),
    };
    let Ok(mut server) = server else {
        let _ = client.set_zero_linger();
        return;
    };
    let mut client = client;
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = tokio::io::split(&mut server);
        tokio::select! {
            cut = copy(from_client, to_server, network.clone(), Direction::Up) => cut,
            cut = copy(from_server, to_client, network, Direction::Down) => cut,
            _ = resets.changed() => Cut::Reset,
        }
    };
    if cut == Cut::Reset {
        let _ = client.set_zero_linger();
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Up,
    Down,
}

#[derive(PartialEq)]
enum Cut {
    Closed,
    Reset,
}

/// Copies bytes until the reader ends.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
    direction: Direction,
) -> Cut {
    let mut bytes = vec![0; 16 << 10];
    let mut carried = 0;
    loop {
        let now = *network.borrow_and_update();
        let most = match now {
            Network::BlackHole => {
                // Bytes in transit stay in the sender's buffers.
                if network.changed().await.is_err() {
                    return Cut::Closed;
                }
                continue;
            }
            Network::Throttle(rate) if direction == Direction::Down => rate.div_ceil(20).max(1),
            _ => bytes.len(),
        };
        let count = tokio::select! {
            read = from.read(&mut bytes[..most]) => match read {
                Ok(0) | Err(_) => return Cut::Closed,
                Ok(count) => count,
            },
            _ = network.changed() => continue,
        };
        let mut end = count;
        let now = *network.borrow();
        match now {
            Network::Delay(delay) => sleep_until(Instant::now() + delay).await,
            Network::Throttle(rate) if direction == Direction::Down => {
                let pause = Duration::from_secs_f64(count as f64 / rate as f64);
                sleep_until(Instant::now() + pause).await;
            }
            Network::CutAfter(most) if direction == Direction::Down => {
                end = count.min(most.saturating_sub(carried));
            }
            Network::BlackHole => {
                while *network.borrow_and_update() == Network::BlackHole {
                    if network.changed().await.is_err() {
                        return Cut::Closed;
                    }
                }
            }
            _ => {}
        }
        if to.write_all(&bytes[..end]).await.is_err() {
            return Cut::Closed;
        }
        carried += end;
        if end < count {
            return Cut::Reset;
        }
    }
}
