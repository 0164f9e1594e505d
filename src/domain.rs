//! The types that every layer uses: notifications, users, transaction ids, positions.
//! Pure: no I/O, and no knowledge of HTTP or of Postgres' protocol beyond the types of
//! columns.
//!
//! May use: nothing but `runtime`.

pub mod clock;
pub(crate) mod durable_floor;
pub mod history;
pub mod identity;
pub mod log_point;
pub mod membership;
pub mod notification;
pub mod position;
pub mod snapshot;
pub mod topic;
