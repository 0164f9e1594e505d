//! How long rows stay.

use std::time::Duration;

use clap::Args;

use super::{DatabaseOptions, duration_between};
use crate::postgres::retention::{self, Retention};

/// How long rows stay, for `serve`.
#[derive(Clone, Debug, Args)]
pub struct RetentionOptions {
    /// Remove rows so long after they were sent (30d; an hour at least), and an
    /// hour after they have expired; off leaves that to `tidings prune`
    #[arg(long, env = "TIDINGS_PRUNE_SENT_AFTER", default_value = "off")]
    pub prune_sent_after: Retention,
    /// How often it is looked for such rows. So that tests need not wait
    #[arg(long, hide = true, default_value = "1m", value_parser = duration_between::<1, 3_600>)]
    pub prune_every: Duration,
}

/// The settings of `tidings prune`.
#[derive(Debug, Args)]
pub struct PruneOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// How long ago rows must have been sent to be removed (30d; an hour at
    /// least); those that expired an hour ago go too
    #[arg(long, value_parser = retention::sent_for)]
    pub sent_before: Duration,
    /// Only count them
    #[arg(long)]
    pub dry_run: bool,
}
