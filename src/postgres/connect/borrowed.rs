//! Sessions that a pooler may lend for one transaction at a time.

use std::time::Duration;

use tokio_postgres::{
    Client, Error, Row,
    types::{ToSql, Type},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ConnectError, DatabaseUrl, connect,
    session_settings::{BEGIN, BEGIN_READING, Scope, pinned},
};

/// Queries that don't depend on the database's settings: the implementation has pinned
/// these once ([`connect_pinned`](super::connect_pinned)), or does so for each query.
pub trait Queries {
    /// Runs one query as an unnamed statement.
    fn query_typed(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// The same for a query that always returns one row.
    fn query_typed_one(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> impl Future<Output = Result<Row, Error>> + Send;
}

impl Queries for Client {
    async fn query_typed(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        self.query_typed(query, parameters).await
    }

    async fn query_typed_one(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, Error> {
        self.query_typed_one(query, parameters).await
    }
}

/// A connection without session state: each query is a transaction with its own settings.
#[derive(Debug)]
pub struct Borrowed {
    client: Client,
    begin: String,
    _driver: AbortOnDropHandle<Option<Error>>,
}

impl Borrowed {
    /// Connects for reading only.
    pub async fn to_read(url: &DatabaseUrl) -> Result<Self, ConnectError> {
        Self::connect(url, BEGIN_READING).await
    }

    /// The same, with further settings for each transaction.
    pub async fn to_read_with(url: &DatabaseUrl, settings: &str) -> Result<Self, ConnectError> {
        let mut client = Self::to_read(url).await?;
        client.begin += settings;
        Ok(client)
    }

    /// Connects for reading and writing.
    pub async fn to_write(url: &DatabaseUrl) -> Result<Self, ConnectError> {
        Self::connect(url, BEGIN).await
    }

    /// The same, with further settings for each transaction.
    pub async fn to_write_with(url: &DatabaseUrl, settings: &str) -> Result<Self, ConnectError> {
        let mut client = Self::to_write(url).await?;
        client.begin += settings;
        Ok(client)
    }

    async fn connect(url: &DatabaseUrl, begin: &str) -> Result<Self, ConnectError> {
        let (client, driver) = connect(url, |_| ()).await?;
        Ok(Self {
            client,
            begin: begin.to_owned() + &pinned(Scope::Transaction),
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Runs a query that always returns one row. The server cancels it after `limit`.
    pub async fn query_one_within(&self, limit: Duration, query: &str) -> Result<Row, Error> {
        let begin = self.begin_within(limit);
        in_transaction(
            &self.client,
            &begin,
            self.client.query_typed_one(query, &[]),
        )
        .await
    }

    /// The same for a query that returns any number of rows.
    pub async fn query_within(&self, limit: Duration, query: &str) -> Result<Vec<Row>, Error> {
        let begin = self.begin_within(limit);
        in_transaction(&self.client, &begin, self.client.query_typed(query, &[])).await
    }

    /// Has the server analyse a query without running it: names, types, and where each may
    /// stand. The query must be a single statement.
    pub async fn analyse(&self, query: &str) -> Result<(), Error> {
        let prepared = format!("prepare tidings_analysed as {query}; deallocate tidings_analysed");
        let analysing = self.client.batch_execute(&prepared);
        in_transaction(&self.client, &self.begin, analysing).await
    }

    fn begin_within(&self, limit: Duration) -> String {
        let limit = limit.as_millis();
        format!("{}set local statement_timeout = {limit};", self.begin)
    }
}

impl Queries for Borrowed {
    async fn query_typed(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, Error> {
        in_transaction(
            &self.client,
            &self.begin,
            self.client.query_typed(query, parameters),
        )
        .await
    }

    async fn query_typed_one(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, Error> {
        in_transaction(
            &self.client,
            &self.begin,
            self.client.query_typed_one(query, parameters),
        )
        .await
    }
}

/// Runs a query in a transaction that starts with `begin`.
///
/// The statements are first polled in this order, so they are sent together. No pooler
/// can separate them, even if this future is dropped before the answer arrives.
///
/// # Errors
///
/// The query's error, or else the transaction's.
pub async fn in_transaction<T>(
    client: &Client,
    begin: &str,
    query: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let (begun, outcome, committed) = tokio::join!(
        biased;
        client.batch_execute(begin),
        query,
        client.batch_execute("commit"),
    );
    begun?;
    let answer = outcome?;
    committed?;
    Ok(answer)
}
