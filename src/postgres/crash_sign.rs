//! By which sign a bridge notices that Postgres has crashed.

use tokio_postgres::{Client, Row, types::Type};

use crate::postgres::{
    connect::{self, DatabaseUrl},
    pool::{self, Pool, QueryError},
    schema::{SchemaError, SchemaName},
};

/// By what crashes are noticed. All statements of a bridge go by the same sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CrashSign {
    /// Crash recovery empties the unlogged table `tidings_incarnation`.
    #[default]
    Table,
    /// It resets the server's statistics, and so can a superuser, which is taken for a
    /// crash. For a role that was given its rights by hand, before there was the table.
    Statistics,
}

/// The table, as the files in `sql/` name it.
const TABLE: &str = ":\"schema\".tidings_incarnation";

/// What a role reads instead that may not use the table.
const STATISTICS: &str =
    "(select true as single, stats_reset as since from pg_stat_bgwriter) as incarnation";

impl CrashSign {
    /// A text of `sql/` that goes by this sign.
    pub fn adapt(self, text: &str) -> String {
        match self {
            Self::Table => text.to_owned(),
            Self::Statistics => text.replace(TABLE, STATISTICS),
        }
    }

    /// What the role of the listener may go by.
    ///
    /// # Errors
    ///
    /// [`SchemaError`], if it can't be found out.
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

    /// What the roles of the listener and of the pool may both go by, where the
    /// listener's may go by this sign.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
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
