//! From where on `check` and `status` call the running state wrong.

use std::time::Duration;

use clap::Args;

use super::duration_between;

/// From where on `check` and `status` call the running state wrong.
#[derive(Clone, Debug, Args)]
pub struct Thresholds {
    /// How far the clocks of the database and of this machine may be apart.
    /// Tokens are judged by one and tickets by the other, and both are forgiven
    /// seconds alone
    #[arg(long, default_value = "5s", value_parser = duration_between::<0, 3_600>)]
    pub max_clock_skew: Duration,
    /// How full the server's queue of notifications may be, in percent. One that
    /// is read is empty within milliseconds; above 50 rows are found late, and at 100
    /// every commit that notifies fails
    #[arg(long, default_value_t = 1.0, value_parser = percent)]
    pub max_queue: f64,
    /// How long a transaction may stay open: as long as it does, VACUUM removes
    /// nothing of what was marked or deleted since. Longer than most backups
    #[arg(long, default_value = "30m", value_parser = duration_between::<0, 31_536_000>)]
    pub max_transaction: Duration,
    /// How many transactions a replication slot or a standby may hold VACUUM back.
    /// Theirs have no age in time
    #[arg(long, default_value_t = 1_000_000)]
    pub max_held: i64,
    /// How many dead rows a table may have, if it is also three times what
    /// autovacuum waits for. Autovacuum looks once a minute, so there may be
    /// those of a busy minute
    #[arg(long, default_value_t = 100_000)]
    pub max_dead_rows: i64,
    /// How long rows may wait while no bridge is connected: longer than a restart
    #[arg(long, default_value = "10m", value_parser = duration_between::<0, 31_536_000>)]
    pub max_wait: Duration,
    /// How far this machine's clock is set forward. So that a test need not set it
    #[arg(long, hide = true, default_value = "0s", value_parser = duration_between::<0, 3_600>)]
    pub clock_ahead: Duration,
}

fn percent(text: &str) -> Result<f64, &'static str> {
    match text.trim_end_matches('%').parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("it must be between 0 and 100"),
    }
}
