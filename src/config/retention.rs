//! The settings for removing old rows.

use std::time::Duration;

use clap::Args;

use super::{DatabaseOptions, duration_between};
use crate::postgres::retention::{self, Retention};

#[derive(Clone, Debug, Args)]
pub struct RetentionOptions {
    /// Remove rows this long after they were sent (30d; at least an hour), and an hour
    /// after they have expired; off leaves that to `tidings prune`
    #[arg(long, env = "TIDINGS_PRUNE_SENT_AFTER", default_value = "off")]
    pub prune_sent_after: Retention,
    /// Interval between searches for such rows. For tests, so that they need not wait
    #[arg(long, hide = true, default_value = "1m", value_parser = duration_between::<1, 3_600>)]
    pub prune_every: Duration,
}

#[derive(Debug, Args)]
pub struct PruneOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Remove rows that were sent at least this long ago (30d; at least an hour), and
    /// rows that expired at least an hour ago
    #[arg(long, value_parser = retention::sent_for)]
    pub sent_before: Duration,
    /// Only count the rows
    #[arg(long)]
    pub dry_run: bool,
}
