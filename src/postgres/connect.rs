//! Connections to Postgres: where it is, and how one is opened.

mod borrowed;
mod conninfo;
mod password;
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
    AsyncMessage, Client, Connection, NoTls,
    config::SslMode,
    error::{DbError, SqlState},
    tls::MakeTlsConnect,
};

pub use self::{
    borrowed::{Borrowed, Queries, in_transaction},
    url::DatabaseUrl,
};
use self::{
    password::{Found, Missing},
    tls::{Attempt, Mode},
    url::{Place, Target},
};
use crate::runtime::escape;

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

/// What a database or a role may set for its applications and would change what our
/// statements mean, whom they conflict with, or whether they work at all.
///
/// Of names, only those of `pg_catalog` are found without a schema: in any other, a
/// function that somebody made could take precedence over one of Postgres with less
/// exact argument types. Where row-level security would hide rows, Postgres reports
/// an error instead.
///
/// Left to the database on purpose: `role`, which decides about rights,
/// `synchronous_commit`, which decides how durable a mark is, and what only a superuser
/// may set (`session_replication_role`).
const PINNED: &[(&str, &str)] = &[
    ("search_path", "pg_catalog, pg_temp"),
    ("row_security", "off"),
    ("default_transaction_isolation", "'read committed'"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("quote_all_identifiers", "off"),
    ("datestyle", "'ISO, MDY'"),
    ("intervalstyle", "'postgres'"),
    ("timezone", "'UTC'"),
    ("bytea_output", "'hex'"),
    ("extra_float_digits", "1"),
    ("lock_timeout", "0"),
    ("statement_timeout", "'60s'"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// The same for settings that only newer servers have: 14 and 17.
const PINNED_IF_KNOWN: [&str; 2] = ["idle_session_timeout", "transaction_timeout"];

/// The queries must stay on their indexes at any table size, also with plans
/// made while the table was empty or never analysed: without these settings
/// Postgres then reads the whole table. The penalties that they set on other
/// plans would start the JIT compiler, which costs more than any query here.
///
/// A query that the bridge no longer waits for need not run on; a shorter
/// timeout, which the database may have for its applications, would only make
/// deaf.
///
/// What our sessions do to the table never makes an earlier row one that is to be
/// delivered (the trigger of `V9__drained.sql`).
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "'10s'"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_sort", "off"),
    ("enable_indexscan", "on"),
    ("enable_indexonlyscan", "on"),
    ("enable_nestloop", "on"),
    ("enable_hashjoin", "on"),
    ("enable_mergejoin", "on"),
    ("enable_hashagg", "on"),
    ("enable_material", "on"),
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("plan_cache_mode", "force_generic_plan"),
    ("tidings.marking", "on"),
];

/// Begins a transaction that means the same whatever the database's defaults are.
pub const BEGIN: &str = "begin isolation level read committed, read write, not deferrable;";

/// The same for what only reads, which a standby lets begin, too.
const BEGIN_READING: &str = "begin isolation level read committed, read only, not deferrable;";

/// Bounds for how long the server keeps a session whose bridge is frozen or
/// gone: it would pin the notification queue of the whole cluster. They act on
/// TCP alone. What it writes is written again if it is lost, so no commit waits
/// for the disk.
const LISTENER_SETTINGS: &str = "
    set tcp_keepalives_idle = 5;
    set tcp_keepalives_interval = 5;
    set tcp_keepalives_count = 2;
    set tcp_user_timeout = 10000;
    set synchronous_commit = off;
";

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
    /// The server doesn't encrypt.
    #[error(
        "the server at {host} offers no TLS, and without it passwords and notifications would \
         cross the network in clear text: turn it on there (ssl = on), or, over a network that \
         you trust, add sslmode=disable to the URL"
    )]
    Unencrypted {
        /// Where.
        host: String,
    },
    /// The server doesn't prove to be the one that was asked for, or doesn't
    /// believe us to be.
    #[error("no TLS with {host} (sslmode={mode}): {reason}")]
    Tls {
        /// Where.
        host: String,
        /// What was asked for.
        mode: &'static str,
        /// Why.
        reason: String,
    },
    /// The server asks for a password, and there is none.
    #[error(
        "the server at {host} asks for a password for the role {role}, and there is none: put it \
         into DATABASE_URL, or set PGPASSWORD, or add a line for it to ~/.pgpass or the file that \
         PGPASSFILE names ({reason})"
    )]
    NoPassword {
        /// Where.
        host: String,
        /// Whose.
        role: String,
        /// Why none was found.
        reason: String,
    },
    /// The server refuses a password that is not from the connection string.
    #[error("{} (the password is from {password})", describe(.error))]
    Password {
        /// What it says.
        error: tokio_postgres::Error,
        /// Where the password is from.
        password: String,
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
    /// or stopping (class 57P of SQLSTATE), or has no room (class 53), or the
    /// connection broke. A password, role or database that it doesn't know is
    /// nothing to wait for.
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

/// Whether the connection broke, rather than that the two could not agree, which
/// tokio-postgres reports with an [`io::Error`] of its own, too.
fn is_broken(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<io::Error>());
    let is_disagreement = |error: &io::Error| {
        use io::ErrorKind::{InvalidData, InvalidInput, Other};
        matches!(error.kind(), InvalidData | InvalidInput | Other)
    };
    error.is_closed() || source.is_some_and(|error| !is_disagreement(error))
}

/// An error with its cause: tokio-postgres' own text says only "db error" or
/// "error connecting to server".
pub fn describe(error: &tokio_postgres::Error) -> String {
    let text = match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(database), _) => {
            let hint = database.hint().map(|hint| format!(" ({hint})"));
            let advice = if is_row_security(error) {
                ROW_SECURITY
            } else {
                ""
            };
            let hint = hint.unwrap_or_default();
            format!("{}{hint}{advice}", database.message())
        }
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    };
    // It may quote names of roles and objects, and raise what an application wrote.
    escape::line(&text).into_owned()
}

/// What to do where row-level security applies to a query.
const ROW_SECURITY: &str = ": row-level security would hide rows from this role; `tidings check` \
                            has the statement that ends it";

/// Whether Postgres refused a query because row-level security applies to it
/// (`row_security = off`). The code is that of every missing privilege, and the
/// message may be translated; the place in the server's source is neither.
pub fn is_row_security(error: &tokio_postgres::Error) -> bool {
    let database = error.as_db_error();
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
        && database.and_then(DbError::routine) == Some("check_enable_rls")
}

/// Whether a transaction could not commit because the server's notification queue is
/// full. What it wrote to sequences stays.
pub fn is_queue_full(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::PROGRAM_LIMIT_EXCEEDED)
}

/// The task that drives a connection. It ends with its client or with the
/// connection, and tells the error that ended it.
pub type Driver = JoinHandle<Option<tokio_postgres::Error>>;

/// Opens a connection. `on_message` is called for what the server says
/// unasked, notifications above all, from a task that always drains the socket:
/// a listener that stops reading pins the notification queue of the whole
/// cluster.
///
/// Of several hosts the first primary that answers is taken. Nothing is set in
/// the session, so names must be qualified.
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
    // So that a host that is frozen leaves time for the others.
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

async fn is_standby(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_typed_one("select pg_catalog.pg_is_in_recovery()", &[]);
    row.await?.try_get(0)
}

async fn open(
    url: &Target,
    host: &Place,
    limit: Duration,
    on_message: impl Fn(AsyncMessage) + Clone + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let mode = url.tls.mode(host.reach());
    let mut attempts = mode.attempts().iter();
    loop {
        let attempt = attempts.next().copied().unwrap_or(Attempt::Clear);
        let on_message = on_message.clone();
        match open_once(url, host, mode, attempt, limit, on_message).await {
            Err(ConnectError::Postgres(error))
                if attempts.len() > 0 && refuses_encryption_or_its_lack(&error) => {}
            outcome => return outcome,
        }
    }
}

/// Whether the server may take the connection the other way: `pg_hba.conf` has
/// no line for this one, or a pooler wants TLS.
fn refuses_encryption_or_its_lack(error: &tokio_postgres::Error) -> bool {
    matches!(error.code().map(SqlState::code), Some("28000" | "08P01"))
}

async fn open_once(
    url: &Target,
    host: &Place,
    mode: Mode,
    attempt: Attempt,
    limit: Duration,
    on_message: impl Fn(AsyncMessage) + Send + 'static,
) -> Result<(Client, Driver), ConnectError> {
    let unreachable = |reason| ConnectError::Network {
        host: host.to_string(),
        reason,
    };
    let mut config = url.config.clone();
    let password = url.password(host);
    if let Some(Ok(found)) = &password {
        config.password(&found.password);
    }
    let explained = |error| explained(error, url, host, password.as_ref());
    config.ssl_mode(match attempt {
        Attempt::Clear => SslMode::Disable,
        Attempt::EncryptedIfOffered => SslMode::Prefer,
        Attempt::Encrypted => SslMode::Require,
    });
    let (name, socket) = match host {
        Place::Unix { folder, port } => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let socket = UnixStream::connect(path).await.map_err(unreachable)?;
            let connecting = config.connect_raw(socket, NoTls).await;
            let (client, connection) = connecting.map_err(explained)?;
            return Ok((client, drive(connection, on_message)));
        }
        Place::Tcp {
            name,
            address,
            port,
        } => {
            let socket = dial(name, *address, *port, limit).await;
            (name, socket.map_err(unreachable)?)
        }
    };
    if attempt == Attempt::Clear {
        let connecting = config.connect_raw(socket, NoTls).await;
        let (client, connection) = connecting.map_err(explained)?;
        return Ok((client, drive(connection, on_message)));
    }
    let refused = |reason| ConnectError::Tls {
        host: host.to_string(),
        mode: mode.name(),
        reason,
    };
    let mut connector = url.tls.connector(mode).map_err(refused)?;
    let Ok(tls) = MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, name);
    match config.connect_raw(socket, tls).await {
        Ok((client, connection)) => Ok((client, drive(connection, on_message))),
        Err(error) if tls::is_not_offered(&error) => Err(ConnectError::Unencrypted {
            host: host.to_string(),
        }),
        Err(error) => Err(match tls::failure(&error) {
            Some(reason) => refused(reason),
            None => explained(error),
        }),
    }
}

/// Why the server does not let us in, where the password has to do with it.
fn explained(
    error: tokio_postgres::Error,
    url: &Target,
    host: &Place,
    password: Option<&Result<Found, Missing>>,
) -> ConnectError {
    // tokio-postgres says so in a text alone.
    let source = std::error::Error::source(&error);
    let is_missing = source.is_some_and(|source| source.to_string() == "password missing");
    let is_wrong = error.code() == Some(&SqlState::INVALID_PASSWORD);
    match password {
        Some(Err(missing)) if is_missing => ConnectError::NoPassword {
            host: host.to_string(),
            role: url.user().to_owned(),
            reason: missing.to_string(),
        },
        Some(Ok(found)) if is_wrong => ConnectError::Password {
            error,
            password: found.source.clone(),
        },
        _ => error.into(),
    }
}

fn drive<S, T>(
    mut connection: Connection<S, T>,
    on_message: impl Fn(AsyncMessage) + Send + 'static,
) -> Driver
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(message)) => on_message(message),
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    })
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
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
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

/// Opens a connection for commands that need a session of their own, with what is
/// pinned in every session.
///
/// # Errors
///
/// As [`connect`].
pub async fn connect_pinned(url: &DatabaseUrl) -> Result<(Client, Driver), ConnectError> {
    let (client, driver) = connect(url, |_| ()).await?;
    // A migration that makes an index takes as long as the table is large.
    let settings = pinned(Scope::Session) + "set statement_timeout = 0;";
    client.batch_execute(&settings).await?;
    Ok((client, driver))
}

/// Gives a session of our own the settings that the bridge's queries need.
///
/// # Errors
///
/// What Postgres answers.
pub async fn settle(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&settings(Scope::Session)).await
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

/// How long a setting holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Until the session ends.
    Session,
    /// Until the transaction ends: a pooler lends sessions for one at a time.
    Transaction,
}

/// The statements that give a session, or a transaction, all that the bridge's
/// queries need.
pub fn settings(scope: Scope) -> String {
    pinned(scope) + &set(scope, SETTINGS)
}

/// The statements that pin what must not depend on the database's defaults.
fn pinned(scope: Scope) -> String {
    let is_local = scope == Scope::Transaction;
    let known = PINNED_IF_KNOWN.iter().map(|name| {
        format!(
            "select set_config('{name}', '0', {is_local}) \
             where current_setting('{name}', true) <> '0';"
        )
    });
    set(scope, PINNED) + &known.collect::<String>()
}

fn set(scope: Scope, settings: &[(&str, &str)]) -> String {
    let set = match scope {
        Scope::Session => "set",
        Scope::Transaction => "set local",
    };
    let lines = settings.iter();
    lines
        .map(|(name, value)| format!("{set} {name} = {value};"))
        .collect()
}
