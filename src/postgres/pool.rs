//! The connections that streams and the marker share.

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
    self, BEGIN, CONNECT_LIMIT, ConnectError, DatabaseUrl, Scope, describe, in_transaction,
};

/// How long a query that reads may take: a page of a user, or less.
pub const READ_LIMIT: Duration = Duration::from_secs(10);

/// Whose sessions the connections lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Ours: settings and prepared statements stay.
    Own,
    /// Lent by a pooler for one transaction at a time: nothing may stay in
    /// them, and statements have no name.
    Lent,
}

/// A bounded number of connections to Postgres.
#[derive(Clone, Debug)]
pub struct Pool {
    /// For pages, lookups of tickets, reports.
    shared: managed::Pool<Opener>,
    /// For marks alone.
    reserved: managed::Pool<Opener>,
    purpose: Purpose,
    sessions: Sessions,
    timeouts: Counter,
}

/// Connections that only the marker uses, so that pages and lookups, which
/// clients cause, never keep marks waiting.
const RESERVED_FOR_MARKS: usize = 1;

/// Which of the connections a handle of the pool uses.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Shared,
    Marks,
}

/// How a pool is used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// Connections that it may have.
    pub most: usize,
    /// Connections that somebody works with.
    pub in_use: usize,
    /// Connections that are open and free.
    pub idle: usize,
    /// How many wait for one.
    pub waiting: usize,
    /// Queries and connections that took too long so far.
    pub timeouts: u64,
}

/// A parameter of a query, with its type: asking for it would name a statement.
pub type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// There was no connection to be had.
    #[error("no database connection: {0}")]
    Connect(#[from] managed::PoolError<ConnectError>),
    /// Postgres or the network refused.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// Nothing answered.
    #[error("the database did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

impl QueryError {
    /// Whether waiting may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect(managed::PoolError::Backend(error)) => error.is_passing(),
            Self::Connect(_) | Self::TimedOut(_) => true,
            Self::Postgres(error) => error.is_closed(),
        }
    }

    /// Whether it is because of the rows that a statement writes: what raises is
    /// a trigger or a constraint, and the same statement may work for other rows.
    /// The session is as good as before.
    pub fn is_of_rows(&self) -> bool {
        let Self::Postgres(error) = self else {
            return false;
        };
        let Some(error) = error.as_db_error() else {
            return false;
        };
        // The classes of SQLSTATE (appendix A of the manual) for what an expression,
        // a constraint, a function or another transaction has against a row.
        const OF_ROWS: [&str; 14] = [
            "09", "21", "22", "23", "27", "2F", "38", "39", "40", "44", "54", "55", "P0", "XX",
        ];
        // What is raised inside a function has a context, whatever its code: our
        // statements call none, so it is a trigger's.
        let code = error.code();
        let is_the_sessions = *code == SqlState::ADMIN_SHUTDOWN
            || *code == SqlState::CRASH_SHUTDOWN
            || *code == SqlState::READ_ONLY_SQL_TRANSACTION;
        let is_raised = error.where_().is_some() && !is_the_sessions;
        is_raised || OF_ROWS.iter().any(|class| code.code().starts_with(class))
    }
}

impl Pool {
    /// A pool of at most `size` connections, which are opened as needed.
    ///
    /// Their driver tasks live on `runtime`: deadpool would spawn them on the
    /// runtime that first asks, one of actix's single-threaded workers, where
    /// they would stall while that worker is busy.
    ///
    /// # Errors
    ///
    /// None in practice: deadpool fails only for timeouts without a runtime.
    pub fn new(
        url: &DatabaseUrl,
        sessions: Sessions,
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
                // What was used last is still in the processor's cache.
                .queue_mode(QueueMode::Lifo)
                .runtime(Runtime::Tokio1)
                .create_timeout(Some(CONNECT_LIMIT))
                .build()
        };
        Ok(Self {
            shared: connections(size.saturating_sub(RESERVED_FOR_MARKS).max(1))?,
            reserved: connections(RESERVED_FOR_MARKS)?,
            purpose: Purpose::Shared,
            sessions,
            timeouts: Counter::default(),
        })
    }

    /// The same pool for the marker, which has a connection reserved.
    pub fn for_marks(&self) -> Self {
        Self {
            purpose: Purpose::Marks,
            ..self.clone()
        }
    }

    /// Runs one query. It runs in a transaction of its own, with the
    /// [settings](connect::settings) that keep it on its indexes. `limit` covers
    /// every wait: for a connection, for opening one, and for the answer.
    ///
    /// A query that fails, isn't answered in time, or whose future is dropped
    /// costs its connection. It may be dead or busy, and a session keeps the
    /// settings that it began with, which may be what is wrong
    /// (`default_transaction_read_only`, say) and be changed since. Only one that
    /// fails because of the rows that it writes doesn't: the session is not to
    /// blame.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub async fn query(
        &self,
        limit: Duration,
        query: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, QueryError> {
        let outcome = match timeout(limit, self.attempt(query, parameters)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // The network or server that swallowed the answer has the idle
                // connections too: each would cost another query the same wait.
                self.renew();
                Err(QueryError::TimedOut(limit))
            }
        };
        if let Err(QueryError::TimedOut(_) | QueryError::Connect(managed::PoolError::Timeout(_))) =
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
        let connections = match self.purpose {
            Purpose::Shared => &self.shared,
            Purpose::Marks => &self.reserved,
        };
        // Given back while a query runs, a connection would make its next user
        // wait for an answer that nothing reads.
        let close = |connection| drop(managed::Object::take(connection));
        let connection = scopeguard::guard(connections.get().await?, close);
        let answer = match self.sessions {
            Sessions::Own => query_prepared(&connection, query, parameters).await,
            Sessions::Lent => query_unnamed(&connection, query, parameters).await,
        };
        let answer = answer.map_err(QueryError::from);
        if answer.as_ref().err().is_none_or(QueryError::is_of_rows) {
            drop(ScopeGuard::into_inner(connection));
        }
        answer
    }

    /// How it is used at the moment.
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

    /// Closes the connections that nobody uses: they may lead to a server that
    /// is no longer the one that the listener hears.
    pub fn renew(&self) {
        for connections in [&self.shared, &self.reserved] {
            connections.retain(|_, _| false);
        }
    }

    /// Closes all connections; queries fail from now on.
    pub fn close(&self) {
        for connections in [&self.shared, &self.reserved] {
            connections.close();
        }
    }
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
    sessions: Sessions,
    runtime: Handle,
}

impl managed::Manager for Opener {
    type Type = ClientWrapper;
    type Error = ConnectError;

    async fn create(&self) -> Result<ClientWrapper, ConnectError> {
        let (url, sessions) = (self.url.clone(), self.sessions);
        let opening = self.runtime.spawn(async move {
            let (client, driver) = connect::connect(&url, |_| ()).await?;
            if sessions == Sessions::Own {
                connect::settle(&client).await?;
            }
            // An error that ends the connection reaches whoever uses it.
            let driver = AbortOnDropHandle::new(driver);
            let driver = tokio::spawn(async move {
                let _ = driver.await;
            });
            Ok(ClientWrapper::new(client, driver))
        });
        match opening.await {
            Ok(opened) => opened,
            // The runtime is shutting down; nobody waits for an answer.
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

/// The first row of an answer. Statements that read a page repeat in each row what holds
/// for the whole page, and answer with one row even if nothing is new.
pub fn first_row(rows: &[Row]) -> &Row {
    match rows {
        [first, ..] => first,
        [] => unreachable!("these statements answer with at least one row"),
    }
}
