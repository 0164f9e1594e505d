//! What the bridge counts, and where it shows it: metrics, the operator's page, the tables
//! that the views read, and the log.
//!
//! May use: `config` and the layers below.

pub(crate) mod dashboard;
pub(crate) mod database_state;
pub mod logging;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod reporter;
pub(crate) mod stats;
