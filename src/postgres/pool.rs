//! The pool of connections that streams and the marker share.

use std::time::Duration;

use deadpool::{
    Runtime,
    managed::{self, Metrics, QueueMode, RecycleError, RecycleResult},
};
use deadpool_postgres::ClientWrapper;
use prometheus_client::metrics::counter::Counter;
use scopeguard::ScopeGuard;
use serde::Serialize;
use tokio::{runtime::Handle, time::timeout};
use tokio_postgres::{
    Row,
    error::SqlState,
    types::{ToSql, Type},
};
use tokio_util::task::AbortOnDropHandle;

use crate::postgres::connect::{
    self, BEGIN, CONNECT_LIMIT, ConnectError, DatabaseUrl, Scope, in_transaction,
};

/// Time limit for reading queries: a user's page, or less.
pub const READ_LIMIT: Duration = Duration::from_secs(10);

/// Whether the connections have sessions of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Each connection has its own session: settings and prepared statements persist.
    Session,
    /// A pooler lends a session per transaction: no session state may remain, and
    /// statements must be unnamed.
    Transaction,
}

/// A bounded pool of connections to Postgres.
#[derive(Clone, Debug)]
pub struct Pool {
    /// For pages, lookups of tickets, reports.
    shared: managed::Pool<Opener>,
    /// Only for marks.
    reserved: managed::Pool<Opener>,
    purpose: PoolPurpose,
    sessions: PoolMode,
    timeouts: Counter,
}

/// Connections reserved for the marker. Pages and lookups are triggered by clients, and
/// must never make marks wait.
const RESERVED_FOR_MARKS: usize = 1;

/// Which of the connections a handle uses.
#[derive(Clone, Copy, Debug)]
enum PoolPurpose {
    Shared,
    Marks,
}

/// Current use of the pool.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// The maximum number of connections.
    pub most: usize,
    /// Connections that are in use.
    pub in_use: usize,
    /// Connections that are open and free.
    pub idle: usize,
    /// Queries waiting for a connection.
    pub waiting: usize,
    /// Queries and connection attempts that have timed out so far.
    pub timeouts: u64,
}

/// A query parameter with its type. Asking Postgres for the type would require a named
/// statement.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No connection was available.
    #[error("no database connection")]
    Connect(#[source] ConnectError),
    /// The pool has none, and opened none.
    #[error("no database connection: {0}")]
    Pool(managed::PoolError<ConnectError>),
    /// Postgres reported an error, or the connection broke.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// There was no answer in time.
    #[error("the database did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl From<managed::PoolError<ConnectError>> for QueryError {
    fn from(error: managed::PoolError<ConnectError>) -> Self {
        match error {
            managed::PoolError::Backend(error) => Self::Connect(error),
            error => Self::Pool(error),
        }
    }
}

impl QueryError {
    /// Whether retrying may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_passing(),
            Self::Pool(_) | Self::TimedOut(_) => true,
            Self::Postgres(error) => error.is_closed(),
        }
    }

    /// Whether what a query has read may have caused the error: a view or function of the
    /// application raised it, or took too long.
    pub fn is_of_data(&self) -> bool {
        let is_canceled = match self {
            Self::Postgres(error) => error.code() == Some(&SqlState::QUERY_CANCELED),
            Self::TimedOut(_) => true,
            Self::Connect(_) | Self::Pool(_) => false,
        };
        is_canceled || self.is_of_rows()
    }

    /// Whether the rows that the statement writes caused the error. A trigger or a
    /// constraint raised it, so the same statement may succeed for other rows, and the
    /// session is still usable.
    pub fn is_of_rows(&self) -> bool {
        let Self::Postgres(error) = self else {
            return false;
        };
        let Some(error) = error.as_db_error() else {
            return false;
        };
        // SQLSTATE classes (appendix A of the manual) of errors that an expression, a
        // constraint, a function or another transaction raises for a row.
        const OF_ROWS: [&str; 14] = [
            "09", "21", "22", "23", "27", "2F", "38", "39", "40", "44", "54", "55", "P0", "XX",
        ];
        // An error raised inside a function has a context, whatever its code. Our
        // statements call no functions, so it comes from a trigger.
        let code = error.code();
        let is_the_sessions = *code == SqlState::ADMIN_SHUTDOWN
            || *code == SqlState::CRASH_SHUTDOWN
            || *code == SqlState::READ_ONLY_SQL_TRANSACTION;
        let is_raised = error.where_().is_some() && !is_the_sessions;
        is_raised || OF_ROWS.iter().any(|class| code.code().starts_with(class))
    }
}

impl Pool {
    /// Creates a pool of at most `size` connections, which are opened as needed.
    ///
    /// Their driver tasks run on `runtime`. deadpool would spawn them on the runtime of
    /// the first caller, one of actix's single-threaded workers, where they would stall
    /// while that worker is busy.
    ///
    /// # Errors
    ///
    /// None in practice: deadpool fails only for timeouts without a runtime.
    pub fn new(
        url: &DatabaseUrl,
        sessions: PoolMode,
        size: usize,
        runtime: Handle,
    ) -> Result<Self, managed::BuildError> {
        let connections = |count| {
            let opener = Opener {
                url: url.clone(),
                sessions,
                runtime: runtime.clone(),
            };
            managed::Pool::builder(opener)
                .max_size(count)
                // The connection that was used last is still in the processor's cache.
                .queue_mode(QueueMode::Lifo)
                .runtime(Runtime::Tokio1)
                .create_timeout(Some(CONNECT_LIMIT))
                .build()
        };
        Ok(Self {
            shared: connections(size.saturating_sub(RESERVED_FOR_MARKS).max(1))?,
            reserved: connections(RESERVED_FOR_MARKS)?,
            purpose: PoolPurpose::Shared,
            sessions,
            timeouts: Counter::default(),
        })
    }

    /// The same pool, but using the connection reserved for the marker.
    pub fn for_marks(&self) -> Self {
        Self {
            purpose: PoolPurpose::Marks,
            ..self.clone()
        }
    }

    /// Runs one query in a transaction of its own, with the [settings](connect::settings)
    /// that keep it on its indexes. `limit` covers every wait: for a connection, for
    /// opening one, and for the answer.
    ///
    /// If the query fails, times out, or its future is dropped, its connection is closed.
    /// The connection may be dead or busy. Also, a session keeps the settings that it
    /// started with: these may be the cause (`default_transaction_read_only`, say) and
    /// may have been changed since. The exception is an error caused by the rows that the
    /// query writes: then the session is not at fault.
    pub async fn query(
        &self,
        limit: Duration,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, QueryError> {
        self.in_time(limit, self.attempt(query, parameters)).await
    }

    /// As [`query`](Self::query), but runs two queries in the same session: the second one
    /// begins after the first has been completed, without waiting for its answer. For pools
    /// with sessions of their own.
    pub async fn query_both(
        &self,
        limit: Duration,
        first: (&str, &[Parameter<'_>]),
        second: (&str, &[Parameter<'_>]),
    ) -> Result<[Vec<Row>; 2], QueryError> {
        debug_assert_eq!(self.sessions, PoolMode::Session);
        let both = async {
            let connection = self.connect().await?;
            // The server executes statements in the order in which they are sent.
            let answers = tokio::join!(
                biased;
                query_prepared(&connection, first.0, first.1),
                query_prepared(&connection, second.0, second.1),
            );
            let answers = match answers {
                (Ok(first), Ok(second)) => Ok([first, second]),
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
            give_back(connection, answers)
        };
        self.in_time(limit, both).await
    }

    async fn in_time<T>(
        &self,
        limit: Duration,
        attempt: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, QueryError> {
        let outcome = match timeout(limit, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // The network or server that didn't answer affects the idle connections
                // too: each would cost another query the same wait.
                self.renew();
                Err(QueryError::TimedOut(limit))
            }
        };
        if let Err(QueryError::TimedOut(_) | QueryError::Pool(managed::PoolError::Timeout(_))) =
            &outcome
        {
            self.timeouts.inc();
        }
        outcome
    }

    async fn attempt(
        &self,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, QueryError> {
        let connection = self.connect().await?;
        let answer = match self.sessions {
            PoolMode::Session => query_prepared(&connection, query, parameters).await,
            PoolMode::Transaction => query_unnamed(&connection, query, parameters).await,
        };
        give_back(connection, answer)
    }

    /// A connection that is closed when it is dropped: if it were returned while its query
    /// is running, its next user would wait for an answer that nothing reads.
    async fn connect(&self) -> Result<Lent, QueryError> {
        let connections = match self.purpose {
            PoolPurpose::Shared => &self.shared,
            PoolPurpose::Marks => &self.reserved,
        };
        let close: fn(managed::Object<Opener>) = |connection| {
            drop(managed::Object::take(connection));
        };
        Ok(scopeguard::guard(connections.get().await?, close))
    }

    /// The current use of the pool.
    pub fn usage(&self) -> Usage {
        let [shared, reserved] = [&self.shared, &self.reserved].map(managed::Pool::status);
        let idle = shared.available + reserved.available;
        Usage {
            most: shared.max_size + reserved.max_size,
            in_use: (shared.size + reserved.size).saturating_sub(idle),
            idle,
            waiting: shared.waiting + reserved.waiting,
            timeouts: self.timeouts.get(),
        }
    }

    /// Closes the idle connections: they may lead to a different server than the
    /// listener's.
    pub fn renew(&self) {
        for connections in [&self.shared, &self.reserved] {
            connections.retain(|_, _| false);
        }
    }

    /// Closes all connections. All later queries fail.
    pub fn close(&self) {
        for connections in [&self.shared, &self.reserved] {
            connections.close();
        }
    }
}

type Lent = ScopeGuard<managed::Object<Opener>, fn(managed::Object<Opener>)>;

/// Returns a connection to its pool, unless the answer is an error that may be the session's.
fn give_back<T>(
    connection: Lent,
    answer: Result<T, tokio_postgres::Error>,
) -> Result<T, QueryError> {
    let answer = answer.map_err(QueryError::from);
    if answer.as_ref().err().is_none_or(QueryError::is_of_rows) {
        drop(ScopeGuard::into_inner(connection));
    }
    answer
}

async fn query_prepared(
    client: &ClientWrapper,
    query: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (values, types): (Vec<_>, Vec<_>) = parameters.iter().cloned().unzip();
    let statement = client.prepare_typed_cached(query, &types).await?;
    client.query(&statement, &values).await
}

async fn query_unnamed(
    client: &ClientWrapper,
    query: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let begin = BEGIN.to_owned() + &connect::settings(Scope::Transaction);
    in_transaction(client, &begin, client.query_typed(query, parameters)).await
}

/// Opens the pool's connections.
#[derive(Debug)]
struct Opener {
    url: DatabaseUrl,
    sessions: PoolMode,
    runtime: Handle,
}

impl managed::Manager for Opener {
    type Type = ClientWrapper;
    type Error = ConnectError;

    async fn create(&self) -> Result<ClientWrapper, ConnectError> {
        let (url, sessions) = (self.url.clone(), self.sessions);
        let opening = self.runtime.spawn(async move {
            let (client, driver) = connect::connect(&url, |_| ()).await?;
            if sessions == PoolMode::Session {
                connect::settle(&client).await?;
            }
            // An error that ends the connection is returned to the query that uses it.
            let driver = AbortOnDropHandle::new(driver);
            let driver = tokio::spawn(async move {
                let _ = driver.await;
            });
            Ok(ClientWrapper::new(client, driver))
        });
        match opening.await {
            Ok(opened) => opened,
            // The runtime is shutting down, so the answer isn't needed.
            Err(_) => std::future::pending().await,
        }
    }

    async fn recycle(
        &self,
        client: &mut ClientWrapper,
        _: &Metrics,
    ) -> RecycleResult<ConnectError> {
        if client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        Ok(())
    }
}

/// The first row of an answer. Statements that read a page repeat values that hold for
/// the whole page in each row, and return one row even if nothing is new.
pub fn first_row(rows: &[Row]) -> &Row {
    match rows {
        [first, ..] => first,
        [] => unreachable!("these statements answer with at least one row"),
    }
}
