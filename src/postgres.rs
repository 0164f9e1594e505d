//! Connections to Postgres, the schema and its migrations, the texts of the queries, and the
//! removal of old rows. Knows nothing of streams.
//!
//! May use: `domain`, `runtime`, `tls`.

pub mod connect;
pub(crate) mod crash_sign;
pub mod error_hint;
pub mod listen_probe;
pub mod pool;
pub mod prune_failure;
pub(crate) mod pruner;
pub mod queries;
pub mod retention;
pub mod schema;
pub(crate) mod visibility;
