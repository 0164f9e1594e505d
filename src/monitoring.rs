//! What the bridge measures, and where it is shown: metrics, the operator's page, the
//! tables behind the SQL views, and the log.
//!
//! May use: `config` and the layers below.

pub mod dashboard;
pub mod database_state;
pub mod logging;
pub mod process;
pub mod prometheus;
pub mod reporter;
pub mod stats;
