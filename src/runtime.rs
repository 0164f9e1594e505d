//! What every layer may use: background tasks, backoff, log throttling, escaping.
//!
//! May use: nothing.

pub mod backoff;
pub mod counter_map;
pub mod escape;
pub mod log_throttle;
pub mod tasks;
