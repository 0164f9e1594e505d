//! The core: delivers rows from the table to connections and marks them as sent.
//!
//! ```text
//! listener → hub → mailbox → stream → marker
//! ```
//!
//! Knows nothing of HTTP, configuration or credentials.
//!
//! May use: `fanout`, `postgres`, `domain`, `runtime`.

pub(crate) mod adopted_marks;
pub mod batch;
pub(crate) mod bridge_count;
pub mod catch_up;
pub(crate) mod chunk_rows;
pub mod counters;
pub mod cursors;
pub mod delivered_watermark;
pub(crate) mod durable_tail;
pub mod feed;
pub(crate) mod fresh_tail;
pub(crate) mod health;
pub mod heartbeat;
pub mod hub;
pub(crate) mod listener;
pub mod mailbox;
pub mod marker;
pub mod membership_table;
pub mod memberships;
pub mod page_reader;
pub(crate) mod recent_disconnections;
pub(crate) mod recent_rows;
pub mod recently_published;
pub mod replicas;
pub mod sse;
pub mod stream;
pub(crate) mod stream_cursor;
pub mod stream_end;
pub(crate) mod topic_routes;

#[cfg(test)]
mod simulation;
