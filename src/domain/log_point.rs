//! A point up to which a standby can be asked to have followed its primary.

use std::sync::Arc;

use tokio_postgres::types::PgLsn;

use crate::domain::{history::History, snapshot::Snapshot};

/// A snapshot of the primary, and where all that it shows is in the write-ahead log.
#[derive(Clone, Debug)]
pub struct LogPoint {
    pub history: History,
    pub snapshot: Arc<Snapshot>,
    /// Everything that the snapshot shows was written before this position.
    pub inserted: PgLsn,
}
