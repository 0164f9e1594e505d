//! Opens connections to Postgres.

mod borrowed;
mod conninfo;
mod password;
mod session_settings;
mod tls;
mod url;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
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
    config::SslMode,
    error::SqlState,
    tls::{MakeTlsConnect, TlsConnect},
};

pub use self::{
    borrowed::{Borrowed, Queries, in_transaction},
    password::MissingPassword,
    session_settings::{BEGIN, Scope, settings, settle, settle_listener},
    tls::TlsError,
    url::{DatabaseUrl, DatabaseUrlError},
};
use self::{
    password::FoundPassword,
    session_settings::pinned,
    tls::TlsAttempt,
    url::{HostAddress, Target},
};
use crate::runtime::error_chain::{self, ErrorChain};

/// Time limit for connecting: name lookup, TCP, the server's answer and the session's
/// settings, for all hosts that the URL names. tokio-postgres' own `connect_timeout`
/// covers only the TCP connect.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// An idle connection is probed after 5 s, and closed if two probes 5 s apart, or data
/// unacknowledged for 15 s, get no answer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 2;
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(15);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Postgres reported an error, or the connection broke.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// The network reported an error.
    #[error("can't connect to {host}")]
    Network { host: String, source: io::Error },
    /// The server doesn't support TLS.
    #[error(
        "the server at {host} offers no TLS, so passwords and notifications would cross the \
         network unencrypted: enable TLS there (ssl = on) or, on a network that you trust, add \
         sslmode=disable to the URL"
    )]
    Unencrypted { host: String },
    /// The server's certificate was not accepted, or the server didn't accept ours.
    #[error("can't establish TLS with {host} (sslmode={mode})")]
    Tls {
        host: String,
        /// The `sslmode` in effect.
        mode: &'static str,
        source: Box<TlsError>,
    },
    /// The server asks for a password, and there is none.
    #[error(
        "the server at {host} requires a password for the role {role}, and none is configured: put \
         it in DATABASE_URL, set PGPASSWORD, or add a line to ~/.pgpass or the file named by \
         PGPASSFILE"
    )]
    NoPassword {
        host: String,
        role: String,
        source: MissingPassword,
    },
    /// The server rejects a password that is not from the connection string.
    #[error("{} (the password is from {password})", ErrorChain(.error))]
    Password {
        error: tokio_postgres::Error,
        /// The source of the password.
        password: String,
    },
    /// There was no answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// One of several hosts is a standby; another may be the primary.
    #[error("it is a standby")]
    Standby,
    /// None of several hosts is usable.
    #[error("no host is a reachable primary ({})", list(.0))]
    NoHost(Vec<(String, Self)>),
}

fn list(hosts: &[(String, ConnectError)]) -> String {
    let hosts = hosts
        .iter()
        .map(|(host, error)| format!("{host}: {}", ErrorChain(error)));
    hosts.collect::<Vec<_>>().join("; ")
}

impl ConnectError {
    /// Whether retrying may help: the server is not there yet, is starting or stopping
    /// (SQLSTATE class 57P), or has no room (class 53), or the connection broke. Retrying
    /// doesn't help if the server rejects the password, role or database.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Network { .. } | Self::Standby => true,
            Self::Postgres(error) => match error.code() {
                Some(code) => code.code().starts_with("57P") || code.code().starts_with("53"),
                None => is_broken(error),
            },
            Self::Unencrypted { .. }
            | Self::Tls { .. }
            | Self::NoPassword { .. }
            | Self::Password { .. } => false,
            Self::NoHost(hosts) => hosts.iter().any(|(_, error)| error.is_passing()),
        }
    }
}

/// Whether the connection broke, as opposed to a failed negotiation, which tokio-postgres
/// also reports as an [`io::Error`].
fn is_broken(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<io::Error>());
    let is_disagreement = |error: &io::Error| {
        use io::ErrorKind::{InvalidData, InvalidInput, Other};
        matches!(error.kind(), InvalidData | InvalidInput | Other)
    };
    error.is_closed() || source.is_some_and(|error| !is_disagreement(error))
}

/// Whether Postgres rejected a query because row-level security applies to it.
pub fn is_row_security(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(error_chain::is_row_security)
}

/// Whether a transaction could not commit because the server's notification queue is
/// full. What it wrote to sequences stays.
pub fn is_queue_full(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::PROGRAM_LIMIT_EXCEEDED)
}

/// The task that drives a connection. It ends with its client or with the connection, and
/// returns the error that ended it.
pub type Driver = JoinHandle<Option<tokio_postgres::Error>>;

/// Opens a connection. `on_message` is called for unsolicited messages, mainly
/// notifications, from a task that always drains the socket: a listener that stops
/// reading pins the notification queue of the whole cluster.
///
/// If there are several hosts, the first primary that answers is used. The session has no
/// settings of ours, so names must be qualified.
///
/// # Errors
///
/// [`ConnectError`], within 10 s.
pub async fn connect(
    url: &DatabaseUrl,
    on_message: impl Fn(AsyncMessage) + Clone + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let url = &url.target();
    let count = url.hosts.len();
    // A frozen host must leave time for the others.
    let share = CONNECT_LIMIT / u32::try_from(count).unwrap_or(u32::MAX);
    let first = url.answered.load(Ordering::Relaxed);
    let mut failed = Vec::new();
    for index in (0..count).map(|turn| (first + turn) % count) {
        let host = &url.hosts[index];
        let on_message = on_message.clone();
        let opening = async move {
            let (client, driver) = open(url, host, share, on_message).await?;
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

pub(super) async fn is_standby(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let query = include_str!("../../sql/is_standby.sql");
    let row = client.query_typed_one(query, &[]).await?;
    row.try_get("is_standby")
}

async fn open(
    url: &Target,
    host: &HostAddress,
    limit: Duration,
    on_message: impl Fn(AsyncMessage) + Clone + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let (first, second) = url.tls.mode(host.reach()).attempts();
    let outcome = open_once(url, host, first, limit, on_message.clone()).await;
    match (outcome, second) {
        (Err(ConnectError::Postgres(error)), Some(second))
            if refuses_encryption_or_its_lack(&error) =>
        {
            open_once(url, host, second, limit, on_message).await
        }
        (outcome, _) => outcome,
    }
}

/// Whether the server might accept the other kind of connection: `pg_hba.conf` has no
/// line for this one, or a pooler requires TLS.
fn refuses_encryption_or_its_lack(error: &tokio_postgres::Error) -> bool {
    matches!(error.code().map(SqlState::code), Some("28000" | "08P01"))
}

async fn open_once(
    url: &Target,
    host: &HostAddress,
    attempt: TlsAttempt,
    limit: Duration,
    on_message: impl Fn(AsyncMessage) + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let unreachable = |source| ConnectError::Network {
        host: host.to_string(),
        source,
    };
    let mut config = url.config.clone();
    let password = url.password(host);
    if let Some(Ok(found)) = &password {
        config.password(&found.password);
    }
    let explained = |error| explained(error, url, host, password);
    config.ssl_mode(match attempt {
        TlsAttempt::Clear => SslMode::Disable,
        TlsAttempt::EncryptedIfOffered => SslMode::Prefer,
        TlsAttempt::Encrypted => SslMode::Require,
    });
    let (name, socket) = match host {
        HostAddress::Unix { folder, port } => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let socket = UnixStream::connect(path).await.map_err(unreachable)?;
            let opened = start_session(&config, socket, NoTls, on_message).await;
            return opened.map_err(explained);
        }
        HostAddress::Tcp {
            name,
            address,
            port,
        } => {
            let socket = dial(name, *address, *port, limit).await;
            (name, socket.map_err(unreachable)?)
        }
    };
    if attempt == TlsAttempt::Clear {
        let opened = start_session(&config, socket, NoTls, on_message).await;
        return opened.map_err(explained);
    }
    let mode = url.tls.mode(host.reach());
    let refused = |error: TlsError| ConnectError::Tls {
        host: host.to_string(),
        mode: mode.name(),
        source: error.into(),
    };
    let mut connector = url.tls.connector(mode).map_err(refused)?;
    let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, name);
    let opened = start_session(&config, socket, tls, on_message).await;
    opened.map_err(|error| match tls::failure(&error) {
        _ if tls::is_not_offered(&error) => ConnectError::Unencrypted {
            host: host.to_string(),
        },
        Some(error) => refused(error),
        None => explained(error),
    })
}

/// Explains a rejected connection if the password is involved.
fn explained(
    error: tokio_postgres::Error,
    url: &Target,
    host: &HostAddress,
    password: Option<Result<FoundPassword, MissingPassword>>,
) -> ConnectError {
    // tokio-postgres reports this only as text.
    let source = std::error::Error::source(&error);
    let is_missing = source.is_some_and(|source| source.to_string() == "password missing");
    let is_wrong = error.code() == Some(&SqlState::INVALID_PASSWORD);
    match password {
        Some(Err(missing)) if is_missing => ConnectError::NoPassword {
            host: host.to_string(),
            role: url.user().to_owned(),
            source: missing,
        },
        Some(Ok(found)) if is_wrong => ConnectError::Password {
            error,
            password: found.source,
        },
        _ => error.into(),
    }
}

/// Negotiates a session over a socket, and starts its driver.
async fn start_session<S, T>(
    config: &Config,
    socket: S,
    tls: T,
    on_message: impl Fn(AsyncMessage) + Send + 'static,
) -> Result<(Client, Driver), tokio_postgres::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: TlsConnect<S, Stream: Send + 'static>,
{
    let (client, mut connection) = config.connect_raw(socket, tls).await?;
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

async fn dial(
    name: &str,
    address: Option<IpAddr>,
    port: u16,
    limit: Duration,
) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = match address {
        Some(address) => vec![(address, port).into()],
        None => lookup_host((name, port)).await?.collect(),
    };
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                bound(&socket);
                return Ok(socket);
            }
            Ok(Err(error)) => last = error,
            Err(elapsed) => last = elapsed.into(),
        }
    }
    Err(last)
}

/// Limits how long a connection with a dead peer appears open. If the system rejects an
/// option, the connection is used anyway.
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

/// Opens a connection for commands that need a session of their own, with the settings
/// that every session pins.
pub async fn connect_pinned(url: &DatabaseUrl) -> Result<(Client, Driver), ConnectError> {
    let (client, driver) = connect(url, |_| ()).await?;
    // A migration that creates an index may take long on a large table.
    let settings = pinned(Scope::Session) + "set statement_timeout = 0;";
    client.batch_execute(&settings).await?;
    Ok((client, driver))
}
