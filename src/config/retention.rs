//! The settings for removing old rows.

use std::time::Duration;

use clap::Args;

use super::{DatabaseOptions, duration_between};
use crate::postgres::retention::{self, Retention, Retentions};

#[derive(Clone, Debug, Args)]
pub struct RetentionOptions {
    /// Remove rows this long after they were sent (30d; at least an hour), and an hour
    /// after they have expired; off leaves that to `tidings prune`
    #[arg(long, env = "TIDINGS_PRUNE_SENT_AFTER", default_value = "off")]
    pub prune_sent_after: Retention,
    /// Remove rows for topics this long after they were created, whether they were sent or
    /// not (30d; at least an hour); off keeps them. Default: as long as sent rows stay
    #[arg(long, env = "TIDINGS_PRUNE_TOPICS_AFTER")]
    pub prune_topics_after: Option<Retention>,
    /// Interval between searches for such rows. For tests, so that they need not wait
    #[arg(long, hide = true, default_value = "1m", value_parser = duration_between::<1, 3_600>)]
    pub prune_every: Duration,
}

impl RetentionOptions {
    /// How long rows stay, if the bridge removes any.
    pub fn retentions(&self) -> Option<Retentions> {
        let sent = self.prune_sent_after;
        let topics = self.prune_topics_after.unwrap_or(sent);
        let is_forever = [sent, topics] == [Retention::Forever; 2];
        (!is_forever).then_some(Retentions { sent, topics })
    }
}

#[derive(Debug, Args)]
pub struct PruneOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Remove rows that were sent at least this long ago (30d; at least an hour), and
    /// rows that expired at least an hour ago
    #[arg(long, value_parser = retention::at_least_an_hour)]
    pub sent_before: Duration,
    /// Remove rows for topics that were created at least this long ago, whether they were
    /// sent or not; off keeps them. Default: as `--sent-before`
    #[arg(long)]
    pub topics_before: Option<Retention>,
    /// Only count the rows
    #[arg(long)]
    pub dry_run: bool,
}

impl PruneOptions {
    pub fn retentions(&self) -> Retentions {
        let sent = Retention::For(self.sent_before);
        Retentions {
            sent,
            topics: self.topics_before.unwrap_or(sent),
        }
    }
}
