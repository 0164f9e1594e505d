//! What everything speaks of: notifications, users, transaction ids, positions. Pure: no I/O,
//! and nothing that knows Postgres' protocol or HTTP beyond the types of a column.
//!
//! May use: nothing but `runtime`.

pub mod clock;
pub(crate) mod durable_floor;
pub mod history;
pub mod identity;
pub mod notification;
pub mod position;
pub mod snapshot;
