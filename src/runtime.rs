//! What every layer may use: background tasks, backoff, log throttling, errors, escaping.
//!
//! May use: nothing.

pub(crate) mod backoff;
pub(crate) mod counter_map;
pub(crate) mod error_chain;
pub(crate) mod escape;
pub(crate) mod log_throttle;
pub(crate) mod loopback;
pub(crate) mod reason_counter;
pub(crate) mod tasks;
