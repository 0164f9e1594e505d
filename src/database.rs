//! Connections to Postgres: one of its own for the listener, a pool for the
//! rest.

use std::{fmt, str::FromStr, time::Duration};

use deadpool_postgres::{
    Client as PooledClient, Connect, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod,
    Runtime,
};
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls,
    config::{Host, SslMode},
};

/// How long connecting may take in all: name look-up, TCP, the server's answer
/// and the session's settings. tokio-postgres' own `connect_timeout` covers the
/// TCP connect alone.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection that carries nothing is probed after 15 s, and given up when
/// three probes 5 s apart, or 20 s of unacknowledged data, bring no answer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(20);

/// The queries must stay on their indexes at any table size, also with plans
/// made while the table was empty or never analysed: without these settings
/// Postgres then reads the whole table. The penalties that they set on other
/// plans would start the JIT compiler, which costs more than any query here.
const SESSION_SETTINGS: &str = "
    set enable_seqscan = off;
    set enable_bitmapscan = off;
    set enable_sort = off;
    set jit = off;
    set max_parallel_workers_per_gather = 0;
    set plan_cache_mode = force_generic_plan;
";

/// Where the database is, as libpq writes it: a URL or `key=value` pairs.
/// Its `Debug` form hides the password.
#[derive(Clone, PartialEq)]
pub struct DatabaseUrl(Config);

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
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err("it names no host (a Unix socket's folder counts as one)".to_owned());
        }
        if config.get_user().is_none() {
            return Err("it names no user".to_owned());
        }
        if config.get_application_name().is_none() {
            config.application_name("tidings");
        }
        config
            .ssl_mode(SslMode::Disable)
            .connect_timeout(CONNECT_LIMIT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(UNACKNOWLEDGED_LIMIT);
        Ok(Self(config))
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
        let hosts = self.0.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let hosts = hosts.collect::<Vec<_>>().join(",");
        let database = self
            .0
            .get_dbname()
            .or(self.0.get_user())
            .unwrap_or_default();
        write!(f, "{hosts}/{database}")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Postgres or the network refused.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// Nothing answered.
    #[error("no answer within {} s", CONNECT_LIMIT.as_secs())]
    TimedOut,
}

impl ConnectError {
    /// Whether waiting may help: the server is not there yet, or is starting
    /// or stopping (class 57P of SQLSTATE).
    pub fn is_passing(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::Postgres(error) => match error.code() {
                Some(code) => code.code().starts_with("57P") || code.code().starts_with("53"),
                None => true,
            },
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

/// Opens a connection for a task that reads its notifications. `on_message` is
/// called for each, from a task of its own that always drains the socket: a
/// listener that stops reading pins the notification queue of the whole
/// cluster. That task ends with the client, or with the connection.
///
/// # Errors
///
/// [`ConnectError`], within 10 s.
pub async fn connect(
    url: &DatabaseUrl,
    on_message: impl Fn(AsyncMessage) + Send + 'static,
) -> Result<(Client, JoinHandle<Option<tokio_postgres::Error>>), ConnectError> {
    let connecting = async {
        let (client, mut connection) = url.0.connect(NoTls).await?;
        let driver = tokio::spawn(async move {
            loop {
                match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(message)) => on_message(message),
                    Some(Err(error)) => return Some(error),
                    None => return None,
                }
            }
        });
        client.batch_execute(SESSION_SETTINGS).await?;
        Ok((client, driver))
    };
    timeout(CONNECT_LIMIT, connecting)
        .await
        .unwrap_or(Err(ConnectError::TimedOut))
}

/// A pool of at most `size` connections.
///
/// Their driver tasks live on `runtime`: deadpool would spawn them on the
/// runtime that first asks, one of actix's single-threaded workers, where they
/// would stall while that worker is busy.
///
/// # Errors
///
/// None in practice: deadpool fails only for timeouts without a runtime.
pub fn pool(
    url: &DatabaseUrl,
    size: usize,
    runtime: Handle,
) -> Result<Pool, deadpool_postgres::BuildError> {
    let manager = Manager::from_connect(
        url.0.clone(),
        ConnectOn(runtime),
        ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        },
    );
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(CONNECT_LIMIT))
        .build()
}

/// Takes a connection from the pool and runs a query on it. A query that isn't
/// answered within `limit` costs its connection, which may be dead.
///
/// # Errors
///
/// [`QueryError`].
pub async fn with_pooled<T>(
    pool: &Pool,
    limit: Duration,
    query: impl AsyncFnOnce(&PooledClient) -> Result<T, tokio_postgres::Error>,
) -> Result<T, QueryError> {
    let client = pool.get().await?;
    match timeout(limit, query(&client)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            drop(PooledClient::take(client));
            Err(QueryError::TimedOut(limit))
        }
    }
}

/// Why a query on the pool failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// There was no connection to be had.
    #[error("no database connection: {0}")]
    Pool(#[from] PoolError),
    /// Postgres or the network refused.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// Nothing answered.
    #[error("the database did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

#[derive(Debug)]
struct ConnectOn(Handle);

impl Connect for ConnectOn {
    fn connect(
        &self,
        config: &Config,
    ) -> futures_util::future::BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>>
    {
        let config = config.clone();
        let connecting = self.0.spawn(async move {
            let (client, connection) = config.connect(NoTls).await?;
            let driver = tokio::spawn(async move {
                // An error here reaches whoever uses the client.
                let _ = connection.await;
            });
            client.batch_execute(SESSION_SETTINGS).await?;
            Ok((client, driver))
        });
        Box::pin(async move {
            match connecting.await {
                Ok(connected) => connected,
                // The runtime is shutting down; nobody waits for an answer.
                Err(_) => std::future::pending().await,
            }
        })
    }
}
