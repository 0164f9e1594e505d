//! The settings that limit streams.

use std::time::Duration;

use clap::{Args, builder::ArgPredicate};

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
    /// When clients retry that were rejected because a limit was reached: after a random 25 to
    /// 100 % of this
    #[arg(
        long,
        env = "TIDINGS_RETRY_AFTER",
        default_value = "60s",
        default_value_if("come_back", ArgPredicate::IsPresent, None),
        value_parser = duration_between::<1, 3_600>
    )]
    pub retry_after: Option<Duration>,
    /// The name of `retry_after` up to 0.2, which has no effect where the new one is set
    #[arg(long, env = "TIDINGS_COME_BACK", hide = true, value_parser = duration_between::<1, 3_600>)]
    pub come_back: Option<Duration>,
}

impl LimitOptions {
    /// When rejected clients retry, at the latest.
    pub fn retry_after(&self) -> Duration {
        let given = self.retry_after.or(self.come_back);
        given.expect("one of them is given unless the other has its default")
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        limits: LimitOptions,
    }

    #[test]
    fn the_old_name_of_a_setting_counts_unless_the_new_one_is_given() {
        for (arguments, expected) in [
            (&[][..], 60),
            (&["--retry-after=5s"], 5),
            (&["--come-back=7s"], 7),
            (&["--come-back=7s", "--retry-after=5s"], 5),
        ] {
            let options = Options::parse_from([&["tidings"], arguments].concat());
            let expected = Duration::from_secs(expected);
            assert_eq!(options.limits.retry_after(), expected, "{arguments:?}");
        }
    }
}
