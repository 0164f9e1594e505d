//! A session that a pooler may have lent for one transaction at a time.

use std::time::Duration;

use tokio_postgres::{
    Client, Error, Row,
    types::{ToSql, Type},
};
use tokio_util::task::AbortOnDropHandle;

use super::{BEGIN, BEGIN_READING, ConnectError, DatabaseUrl, Scope, connect, pinned};

/// Queries that don't depend on the database's settings: what runs them has pinned
/// these ([`connect_pinned`](super::connect_pinned)), or does so for each.
pub trait Queries {
    /// Runs one query, without a name for it.
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

/// A connection in which nothing may stay: each query is a transaction with its own
/// settings.
#[derive(Debug)]
pub struct Borrowed {
    client: Client,
    begin: String,
    _driver: AbortOnDropHandle<Option<Error>>,
}

impl Borrowed {
    /// Connects, to read.
    ///
    /// # Errors
    ///
    /// As [`connect`].
    pub async fn to_read(url: &DatabaseUrl) -> Result<Self, ConnectError> {
        Self::connect(url, BEGIN_READING).await
    }

    /// Connects, to write, too.
    ///
    /// # Errors
    ///
    /// As [`connect`].
    pub async fn to_write(url: &DatabaseUrl) -> Result<Self, ConnectError> {
        Self::connect(url, BEGIN).await
    }

    async fn connect(url: &DatabaseUrl, begin: &str) -> Result<Self, ConnectError> {
        let (client, driver) = connect(url, |_| ()).await?;
        Ok(Self {
            client,
            begin: begin.to_owned() + &pinned(Scope::Transaction),
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// Runs a query that always returns one row, and that the server ends after this time.
    ///
    /// # Errors
    ///
    /// What Postgres answers.
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
    ///
    /// # Errors
    ///
    /// What Postgres answers.
    pub async fn query_within(&self, limit: Duration, query: &str) -> Result<Vec<Row>, Error> {
        let begin = self.begin_within(limit);
        in_transaction(&self.client, &begin, self.client.query_typed(query, &[])).await
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

/// Runs a query in a transaction that begins so.
///
/// The statements are polled in this order at first, so they are sent as one and no
/// pooler can tear them apart, also if nobody waits for the answer.
///
/// # Errors
///
/// That of the query, or else of its transaction.
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
