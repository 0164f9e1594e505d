//! How much is let in.

use std::time::Duration;

use clap::Args;

use super::duration_between;

/// How much is let in.
#[derive(Clone, Debug, Args)]
pub struct LimitOptions {
    /// Streams that may be open, in all; each is an open file
    #[arg(long, env = "TIDINGS_MAX_CONNECTIONS", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Streams that one user may have open: tabs and devices
    #[arg(long, env = "TIDINGS_MAX_CONNECTIONS_PER_USER", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_user: u32,
    /// Streams that may be open from one address (of IPv6, one /64 network): an
    /// office can be behind it
    #[arg(long, env = "TIDINGS_MAX_CONNECTIONS_PER_ADDRESS", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_address: u32,
    /// Streams a second that may be asked for from one address, for long; ten
    /// times as many at once
    #[arg(long, env = "TIDINGS_CONNECTION_RATE", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connection_rate: u32,
    /// When a stream is ended, so that its client comes back with a new one: at
    /// three quarters to all of this, each at a time of its own
    #[arg(long, env = "TIDINGS_MAX_STREAM_AGE", default_value = "12h", value_parser = duration_between::<1, 31_536_000>)]
    pub max_stream_age: Duration,
    /// When those come back who were turned away because it was full: after a
    /// quarter to all of this, each after a time of its own
    #[arg(long, env = "TIDINGS_COME_BACK", default_value = "60s", value_parser = duration_between::<1, 3_600>)]
    pub come_back: Duration,
}
