//! An index of a large table, built while applications are writing.
//!
//! `create index concurrently` runs in no transaction, but each migration does. So such an
//! index is built between two migrations: one that adds what it needs, and one that
//! requires it. On an empty table the first of them creates it.

use std::time::Duration;

use tokio_postgres::{Client, types::Type};

use super::SchemaName;

/// An index, and when it is built.
pub(super) struct ConcurrentIndex {
    /// The migration after which it is built. The next one requires it.
    pub(super) after: i32,
    name: &'static str,
    create: &'static str,
}

/// The index for the pages of topics.
pub(super) const TOPICS: ConcurrentIndex = ConcurrentIndex {
    after: 24,
    name: "notifications_topic_xid_id",
    create: include_str!("../../../sql/index_topics.sql"),
};

impl ConcurrentIndex {
    /// The statement that builds it unless it exists.
    pub(super) fn create(&self, schema: &SchemaName) -> String {
        schema.fill(self.create)
    }

    /// Builds it unless it exists. What an earlier attempt has left is removed first.
    ///
    /// It waits for `limit` for transactions that were open before. Writers wait neither
    /// for it nor behind it, so the limit may be long.
    ///
    /// # Errors
    ///
    /// What Postgres says, also if such a transaction stays open.
    pub(super) async fn build(
        &self,
        client: &Client,
        schema: &SchemaName,
        limit: Duration,
    ) -> Result<(), tokio_postgres::Error> {
        let valid = include_str!("../../../sql/is_index_valid.sql");
        let parameters = [
            (&schema.name() as _, Type::TEXT),
            (&self.name as _, Type::TEXT),
        ];
        let found = client.query_typed(valid, &parameters).await?;
        let valid: Option<bool> = found.first().map(|row| row.try_get(0)).transpose()?;
        if valid == Some(true) {
            return Ok(());
        }
        // Zero would mean no limit.
        let timeout = format!("set lock_timeout = '{}ms'", limit.as_millis().max(1));
        client.batch_execute(&timeout).await?;
        if valid == Some(false) {
            let drop = format!("drop index concurrently {}", schema.qualified(self.name));
            client.batch_execute(&drop).await?;
        }
        client.batch_execute(&self.create(schema)).await
    }
}
