//! Messages between bridges: what one of them reads from Postgres, the others needn't
//! read.

mod feed_keys;

pub use self::feed_keys::{FeedKey, FeedKeys, KEY_LEN, SealError, UnreadableMessage};
