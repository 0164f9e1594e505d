//! The database of a bridge.

use std::sync::Arc;

use crate::postgres::{connect::DatabaseUrl, pool::Pool, queries::Sql, schema::SchemaName};

/// How the bridge reaches its database. Clones share the pool and the URLs.
#[derive(Clone, Debug)]
pub struct Database {
    pub url: DatabaseUrl,
    /// For sessions that LISTEN and migrate. The same, unless `url` leads to a pooler.
    pub direct_url: DatabaseUrl,
    pub schema: SchemaName,
    pub pool: Pool,
    pub sql: Arc<Sql>,
}
