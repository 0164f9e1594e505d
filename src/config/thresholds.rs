//! The thresholds above which `check` and `status` report the running state as wrong.

use std::time::Duration;

use clap::Args;

use super::duration_between;

#[derive(Clone, Debug, Args)]
pub struct Thresholds {
    /// Maximum difference between the clocks of the database and of this machine. Tokens
    /// are checked against one and tickets against the other, and both tolerate only
    /// seconds
    #[arg(long, default_value = "5s", value_parser = duration_between::<0, 3_600>)]
    pub max_clock_skew: Duration,
    /// Maximum fill level of the server's notification queue, in percent. A queue that is
    /// read empties within milliseconds; above 50, rows are found late, and at 100 every
    /// commit that notifies fails
    #[arg(long, default_value_t = 1.0, value_parser = percent)]
    pub max_queue: f64,
    /// Maximum duration of a transaction: while it is open, VACUUM can't remove anything
    /// that was marked or deleted since. Should be longer than most backups
    #[arg(long, default_value = "30m", value_parser = duration_between::<0, 31_536_000>)]
    pub max_transaction: Duration,
    /// Maximum number of transactions by which a replication slot or a standby may hold
    /// VACUUM back. These have no age in time
    #[arg(long, default_value_t = 1_000_000)]
    pub max_held: i64,
    /// Maximum number of dead rows in a table, if it is also three times autovacuum's
    /// threshold. Autovacuum checks once a minute, so the dead rows of a busy minute are
    /// normal
    #[arg(long, default_value_t = 100_000)]
    pub max_dead_rows: i64,
    /// Maximum time that rows may wait while no bridge is connected: longer than a
    /// restart
    #[arg(long, default_value = "10m", value_parser = duration_between::<0, 31_536_000>)]
    pub max_wait: Duration,
    /// How far this machine's clock is set forward. For tests, so that they need not set
    /// it
    #[arg(long, hide = true, default_value = "0s", value_parser = duration_between::<0, 3_600>)]
    pub clock_ahead: Duration,
}

fn percent(text: &str) -> Result<f64, &'static str> {
    match text.trim_end_matches('%').parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("it must be between 0 and 100"),
    }
}
