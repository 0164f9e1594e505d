//! Messages between bridges: what one of them reads from Postgres, the others needn't
//! read.
//!
//! Nothing depends on a message: it may be dropped, delayed, repeated or reordered, and its
//! receiver finds out from what it says.
//!
//! May use: `tls`, `runtime`.

mod feed_keys;
mod fragments;
mod link;
mod probe;
mod servers;

pub use self::{
    feed_keys::{FeedKey, FeedKeys, KEY_LEN, SealError, UnreadableMessage},
    fragments::{Assembler, Parcel, TooLong},
    link::{FeedLink, LinkState, LinkTask, link},
    probe::{ProbeFlaw, probe},
    servers::{NatsError, NatsIdentity, NatsServers},
};
