//! What the bridge counts, and where it shows it: metrics, the operator's page, the tables
//! that the views read, and the log.
//!
//! May use: `config` and the layers below.

pub mod dashboard;
pub mod database_state;
pub mod logging;
pub mod process;
pub mod prometheus;
pub mod reporter;
pub mod stats;
