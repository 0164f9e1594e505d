//! The settings that limit streams.

use std::time::Duration;

use clap::Args;

use super::duration_between;

#[derive(Clone, Debug, Args)]
pub struct LimitOptions {
    /// Maximum number of open streams; each is an open file
    #[arg(long, env = "TIDINGS_MAX_CONNECTIONS", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Maximum number of open streams per user: tabs and devices
    #[arg(long, env = "TIDINGS_MAX_CONNECTIONS_PER_USER", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_user: u32,
    /// Maximum number of open streams per address (for IPv6, per /64 network): an office
    /// may share one
    #[arg(long, env = "TIDINGS_MAX_CONNECTIONS_PER_ADDRESS", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_address: u32,
    /// Sustained rate of requests for streams per second from one address; bursts of ten
    /// times as many are allowed
    #[arg(long, env = "TIDINGS_CONNECTION_RATE", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connection_rate: u32,
    /// Maximum age of a stream, after which its client reconnects. Each stream ends at a
    /// random time between three quarters of this and all of it
    #[arg(long, env = "TIDINGS_MAX_STREAM_AGE", default_value = "12h", value_parser = duration_between::<1, 31_536_000>)]
    pub max_stream_age: Duration,
    /// Time after which clients retry that were rejected because a limit was reached.
    /// Each waits a random time between a quarter of this and all of it
    #[arg(long, env = "TIDINGS_COME_BACK", default_value = "60s", value_parser = duration_between::<1, 3_600>)]
    pub come_back: Duration,
}
