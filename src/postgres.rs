//! Connections to Postgres, the schema and its migrations, query texts, and the removal
//! of old rows. Independent of streams.
//!
//! May use: `domain`, `runtime`, `tls`.

pub mod adoption;
pub mod connect;
pub(crate) mod crash_sign;
pub mod database;
pub mod error_hint;
pub mod listen_probe;
pub mod memberships;
pub mod pool;
pub mod prune_failure;
pub(crate) mod pruner;
pub mod queries;
pub mod replica;
pub mod retention;
pub mod schema;
pub(crate) mod visibility;
