//! Connections to Postgres: where it is, and how one is opened.

use std::{
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream, lookup_host},
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls,
    config::{Host, SslMode},
};

/// How long connecting may take in all: name look-up, TCP, the server's answer
/// and the session's settings, of all hosts that the URL names. tokio-postgres'
/// own `connect_timeout` covers the TCP connect alone.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection that carries nothing is probed after 5 s, and given up when
/// two probes 5 s apart, or 15 s of unacknowledged data, bring no answer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 2;
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(15);

/// Where Postgres listens if a URL doesn't say.
const DEFAULT_PORT: u16 = 5432;

/// The queries must stay on their indexes at any table size, also with plans
/// made while the table was empty or never analysed: without these settings
/// Postgres then reads the whole table. The penalties that they set on other
/// plans would start the JIT compiler, which costs more than any query here.
///
/// A query that the bridge no longer waits for need not run on; a shorter
/// timeout, which the database may have for its applications, would only make
/// deaf.
pub const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "'10s'"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("plan_cache_mode", "force_generic_plan"),
];

/// Bounds for how long the server keeps a session whose bridge is frozen or
/// gone: it would pin the notification queue of the whole cluster. They act on
/// TCP alone.
const LISTENER_SETTINGS: &str = "
    set tcp_keepalives_idle = 5;
    set tcp_keepalives_interval = 5;
    set tcp_keepalives_count = 2;
    set tcp_user_timeout = 10000;
";

/// Where the database is, as libpq writes it: a URL or `key=value` pairs.
/// Its `Debug` form hides the password.
#[derive(Clone)]
pub struct DatabaseUrl {
    config: Config,
    hosts: Arc<[Place]>,
    /// The host that answered last, to begin with: after a failover each
    /// connection would otherwise first try the one that is gone.
    answered: Arc<AtomicUsize>,
}

/// One of the hosts.
#[derive(Clone, Debug)]
enum Place {
    Tcp { host: String, port: u16 },
    Unix { folder: PathBuf, port: u16 },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { folder, .. } => write!(f, "{}", folder.display()),
        }
    }
}

/// The hosts of a connection string, as libpq pairs them: an address stands for
/// the name beside it, and a single port is that of all.
fn places(config: &Config) -> Vec<Place> {
    let (hosts, addresses, ports) = (
        config.get_hosts(),
        config.get_hostaddrs(),
        config.get_ports(),
    );
    let port = |index| match ports {
        [] => DEFAULT_PORT,
        &[port] => port,
        ports => ports.get(index).copied().unwrap_or(DEFAULT_PORT),
    };
    let tcp = |host, index| Place::Tcp {
        host,
        port: port(index),
    };
    (0..hosts.len().max(addresses.len()))
        .map(|index| match (addresses.get(index), hosts.get(index)) {
            (Some(address), _) => tcp(IpAddr::to_string(address), index),
            (None, Some(Host::Tcp(name))) => tcp(name.clone(), index),
            (None, Some(Host::Unix(folder))) => Place::Unix {
                folder: folder.clone(),
                port: port(index),
            },
            (None, None) => unreachable!("the longer of the two has this index"),
        })
        .collect()
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut config = Config::from_str(text).map_err(|error| {
            format!("it should look like postgres://user:password@host/database ({error})")
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(
                "this version speaks no TLS to Postgres: use sslmode=disable or prefer \
                        over a network that you trust, or a local tunnel"
                    .to_owned(),
            );
        }
        let hosts: Arc<[Place]> = places(&config).into();
        if hosts.is_empty() {
            return Err("it names no host (a Unix socket's folder counts as one)".to_owned());
        }
        let ports = config.get_ports().len();
        if ports > 1 && ports != hosts.len() {
            return Err(format!("it names {} hosts and {ports} ports", hosts.len()));
        }
        if config.get_user().is_none() {
            return Err("it names no user".to_owned());
        }
        if config.get_application_name().is_none() {
            config.application_name("tidings");
        }
        config.ssl_mode(SslMode::Disable);
        Ok(Self {
            config,
            hosts,
            answered: Arc::default(),
        })
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Host and database, for messages; never the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match host {
                Place::Tcp { host, .. } => write!(f, "{comma}{host}")?,
                Place::Unix { folder, .. } => write!(f, "{comma}{}", folder.display())?,
            }
        }
        let database = self.config.get_dbname().or(self.config.get_user());
        write!(f, "/{}", database.unwrap_or_default())
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Postgres refused.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The network refused.
    #[error("can't connect to {host}: {reason}")]
    Network {
        /// Where.
        host: String,
        /// Why.
        reason: io::Error,
    },
    /// Nothing answered.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// One of several hosts is a standby; another may be the primary.
    #[error("it is a standby")]
    Standby,
    /// None of several hosts would do.
    #[error("none of the hosts is a primary that answers ({})", list(.0))]
    NoHost(Vec<(String, Self)>),
}

fn list(hosts: &[(String, ConnectError)]) -> String {
    let hosts = hosts.iter().map(|(host, error)| format!("{host}: {error}"));
    hosts.collect::<Vec<_>>().join("; ")
}

impl ConnectError {
    /// Whether waiting may help: the server is not there yet, or is starting
    /// or stopping (class 57P of SQLSTATE), or has no room (class 53).
    pub fn is_passing(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Network { .. } | Self::Standby => true,
            Self::Postgres(error) => match error.code() {
                Some(code) => code.code().starts_with("57P") || code.code().starts_with("53"),
                None => true,
            },
            Self::NoHost(hosts) => hosts.iter().any(|(_, error)| error.is_passing()),
        }
    }
}

/// An error with its cause: tokio-postgres' own text says only "db error" or
/// "error connecting to server".
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(database) = error.as_db_error() {
        let hint = database
            .hint()
            .map(|hint| format!(" ({hint})"))
            .unwrap_or_default();
        return format!("{}{hint}", database.message());
    }
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What carries a connection.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// The task that drives a connection. It ends with its client or with the
/// connection, and tells the error that ended it.
pub type Driver = JoinHandle<Option<tokio_postgres::Error>>;

/// Opens a connection. `on_message` is called for what the server says
/// unasked, notifications above all, from a task that always drains the socket:
/// a listener that stops reading pins the notification queue of the whole
/// cluster.
///
/// Of several hosts the first primary that answers is taken. Nothing is set in
/// the session.
///
/// # Errors
///
/// [`ConnectError`], within 10 s.
pub async fn connect(
    url: &DatabaseUrl,
    on_message: impl Fn(AsyncMessage) + Clone + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let count = url.hosts.len();
    // So that a host that is frozen leaves time for the others.
    let share = CONNECT_LIMIT / u32::try_from(count).unwrap_or(u32::MAX);
    let first = url.answered.load(Ordering::Relaxed);
    let mut failed = Vec::new();
    for index in (0..count).map(|turn| (first + turn) % count) {
        let host = &url.hosts[index];
        let opening = async {
            let (client, driver) = open(&url.config, host, share, on_message.clone()).await?;
            if count > 1 && is_standby(&client).await? {
                return Err(ConnectError::Standby);
            }
            Ok((client, driver))
        };
        let outcome = timeout(share, opening).await;
        match outcome.unwrap_or(Err(ConnectError::TimedOut(share))) {
            Ok(connected) => {
                url.answered.store(index, Ordering::Relaxed);
                return Ok(connected);
            }
            Err(error) => failed.push((host.to_string(), error)),
        }
    }
    match failed.pop() {
        Some((_, error)) if failed.is_empty() => Err(error),
        last => {
            failed.extend(last);
            Err(ConnectError::NoHost(failed))
        }
    }
}

async fn is_standby(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_typed_one("select pg_is_in_recovery()", &[]);
    row.await?.try_get(0)
}

async fn open(
    config: &Config,
    host: &Place,
    limit: Duration,
    on_message: impl Fn(AsyncMessage) + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let socket = host.dial(limit).await.map_err(|reason| {
        let host = host.to_string();
        ConnectError::Network { host, reason }
    })?;
    let (client, mut connection) = config.connect_raw(socket, NoTls).await?;
    let driver = tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(message)) => on_message(message),
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    });
    Ok((client, driver))
}

impl Place {
    async fn dial(&self, limit: Duration) -> io::Result<Box<dyn Socket>> {
        match self {
            Self::Unix { folder, port } => {
                let path = folder.join(format!(".s.PGSQL.{port}"));
                Ok(Box::new(UnixStream::connect(path).await?))
            }
            Self::Tcp { host, port } => {
                let addresses: Vec<_> = lookup_host((host.as_str(), *port)).await?.collect();
                let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in addresses {
                    match timeout(share, TcpStream::connect(address)).await {
                        Ok(Ok(socket)) => {
                            bound(&socket);
                            return Ok(Box::new(socket));
                        }
                        Ok(Err(error)) => last = error,
                        Err(elapsed) => last = elapsed.into(),
                    }
                }
                Err(last)
            }
        }
    }
}

/// Bounds how long a connection whose other end is gone passes for open. An
/// option that the system refuses is no reason to do without the database.
fn bound(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT));
}

/// Gives a session of our own the settings that its queries need.
///
/// # Errors
///
/// What Postgres answers.
pub async fn settle(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&settings("set")).await
}

/// The same for the session that listens.
///
/// # Errors
///
/// What Postgres answers.
pub async fn settle_listener(client: &Client) -> Result<(), tokio_postgres::Error> {
    settle(client).await?;
    client.batch_execute(LISTENER_SETTINGS).await
}

/// All [`SETTINGS`] in one text; `set` for the session or `set local` for the
/// transaction.
pub fn settings(set: &str) -> String {
    let lines = SETTINGS.iter();
    lines
        .map(|(name, value)| format!("{set} {name} = {value};"))
        .collect()
}
