//! What the bridge measures, and where it is shown: metrics, the operator's page, the
//! tables behind the SQL views, and the log.
//!
//! May use: `config` and the layers below.

pub(crate) mod chart_data;
pub(crate) mod dashboard;
pub(crate) mod database_state;

pub mod logging;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod reporter;
pub(crate) mod stats;
