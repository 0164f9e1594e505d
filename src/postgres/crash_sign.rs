//! The sign by which a bridge detects that Postgres has crashed.

use tokio_postgres::{Client, Row, types::Type};

use crate::postgres::{
    connect::{self, DatabaseUrl},
    pool::{self, Pool, QueryError},
    schema::{SchemaError, SchemaName},
};

/// How crashes are detected. All statements of a bridge use the same sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrashSign {
    /// Crash recovery empties the unlogged table `tidings_incarnation`.
    #[default]
    Table,
    /// Crash recovery resets the server's statistics. A superuser can do so too, which
    /// then counts as a crash. For roles that were granted their privileges by hand
    /// before the table existed.
    Statistics,
}

impl CrashSign {
    /// The query for the server's incarnation.
    pub(super) fn incarnation(self) -> &'static str {
        match self {
            Self::Table => include_str!("../../sql/incarnation.sql"),
            Self::Statistics => include_str!("../../sql/incarnation_by_statistics.sql"),
        }
    }

    /// The sign that the listener's role may use.
    pub async fn of_listener(url: &DatabaseUrl, schema: &SchemaName) -> Result<Self, SchemaError> {
        let (client, _driver) = connect::connect_pinned(url).await?;
        Ok(Self::of_session(&client, schema).await?)
    }

    async fn of_session(
        client: &Client,
        schema: &SchemaName,
    ) -> Result<Self, tokio_postgres::Error> {
        let table = schema.qualified("tidings_incarnation");
        let query = include_str!("../../sql/may_notice.sql");
        let row = client
            .query_typed_one(query, &[(&table, Type::TEXT)])
            .await?;
        Self::read(&row)
    }

    /// The sign that the roles of both the listener and the pool may use, given that the
    /// listener's may use `self`.
    pub async fn and_of_pool(self, pool: &Pool, schema: &SchemaName) -> Result<Self, QueryError> {
        if self == Self::Statistics {
            return Ok(self);
        }
        let table = schema.qualified("tidings_incarnation");
        let query = include_str!("../../sql/may_notice.sql");
        let rows = pool
            .query(pool::READ_LIMIT, query, &[(&table, Type::TEXT)])
            .await?;
        Ok(Self::read(pool::first_row(&rows))?)
    }

    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(match row.try_get("may_notice")? {
            Some(true) => Self::Table,
            Some(false) | None => Self::Statistics,
        })
    }
}
