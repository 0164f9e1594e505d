//! Removes old rows in the background of `tidings serve`, where that is wanted.
//!
//! Of several bridges on one table one does it. It holds an advisory lock in a
//! session of its own; if it goes, another one takes over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    postgres::{
        connect::DatabaseUrl,
        prune_failure::{PruneFailure, complaint},
        retention::{Batch, Left, Pace, Prune, PruneError, Retry, Turn},
        schema::SchemaName,
    },
    runtime::backoff::{Backoff, jittered},
};

/// It works for a tenth of the time at most: ten thousand rows a second on a
/// small machine, and little that anybody else feels.
const PACE: Pace = Pace { rest: 9 };

/// The longest wait after a failure, which may last until a DBA has time.
const RETRY_LONGEST: Duration = Duration::from_secs(60 * 60);

/// The log is told at most once in this time that rows can't be removed for the same
/// reason.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60 * 60);

/// How many rows this bridge has removed.
#[derive(Debug, Default)]
pub struct Pruned {
    removed: AtomicU64,
    failed: AtomicU64,
}

impl Pruned {
    /// Since it started.
    pub fn rows(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// Rows that it could not remove, at the moment.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The task that removes rows.
#[derive(Debug)]
pub struct Pruner {
    /// Where it has sessions of its own.
    pub url: DatabaseUrl,
    /// Whose rows.
    pub schema: SchemaName,
    /// How long they stay after they were sent.
    pub sent_for: Duration,
    /// How long it waits when nothing more is old enough.
    pub every: Duration,
    /// Where it counts them.
    pub pruned: Arc<Pruned>,
}

impl Pruner {
    /// Removes rows until `stop`. A batch that is cut off was either done or not.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.prune()).await;
    }

    async fn prune(&self) {
        info!(
            "rows are removed {} after they were sent, and an hour after they have expired",
            humantime::format_duration(self.sent_for)
        );
        let mut backoff = Backoff::new(self.every, RETRY_LONGEST);
        loop {
            let delay = match self.take_turn(&mut backoff).await {
                Ok(()) => {
                    backoff.reset();
                    jittered(self.every)
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    warn!(
                        %error, delay_ms = delay.as_millis() as u64,
                        "could not remove old rows, trying again in {}: {error}",
                        humantime::format_duration(Duration::from_secs(delay.as_secs()))
                    );
                    delay
                }
            };
            sleep(delay).await;
        }
    }

    /// Returns at once if another bridge does it; else only with an error.
    async fn take_turn(&self, backoff: &mut Backoff) -> Result<(), PruneError> {
        let mut prune = Prune::open(&self.url, &self.schema, self.sent_for, Retry::WhenDue).await?;
        match prune.take_turn().await? {
            Turn::Ours => {}
            Turn::Another => {
                debug!("another bridge removes old rows");
                return Ok(());
            }
            Turn::Obstructed(holder) => warn!(
                "{holder} holds the advisory lock by which one of several bridges removes old \
                 rows, and may not remove any: this bridge removes them without it; \
                 `tidings check` has the statement that ends that session"
            ),
        }
        let mut complaints = Complaints::default();
        loop {
            let begin = Instant::now();
            let rows = self.walk(&mut prune).await?;
            backoff.reset();
            let failures = prune.failures().await?;
            let failed = PruneFailure::total(&failures);
            self.pruned.failed.store(failed, Ordering::Relaxed);
            complaints.tell(&failures);
            if rows > 0 {
                let seconds = begin.elapsed().as_secs();
                debug!(rows, seconds, "removed {rows} old rows in {seconds} s");
            }
            sleep(self.every).await;
        }
    }

    /// From the oldest row to the first that is too young.
    async fn walk(&self, prune: &mut Prune) -> Result<u64, PruneError> {
        let mut removed = 0;
        loop {
            let begin = Instant::now();
            match prune.batch().await? {
                Batch::Removed { rows, left } => {
                    self.pruned.removed.fetch_add(rows, Ordering::Relaxed);
                    removed += rows;
                    if left == Left::Nothing {
                        return Ok(removed);
                    }
                }
                // Whoever it is does the same work.
                Batch::Busy => return Ok(removed),
            }
            sleep(PACE.after(begin)).await;
        }
    }
}

/// What the log was told of rows that can't be removed.
#[derive(Debug, Default)]
struct Complaints {
    told: Option<(Option<String>, Instant)>,
}

impl Complaints {
    /// Tells the log, unless it was told of the same lately.
    fn tell(&mut self, failures: &[PruneFailure]) {
        let (Some(complaint), Some(first)) = (complaint(failures), failures.first()) else {
            self.told = None;
            return;
        };
        let is_known = self.told.as_ref().is_some_and(|(constraint, at)| {
            *constraint == first.constraint && at.elapsed() < COMPLAIN_EVERY
        });
        if !is_known {
            warn!(rows = PruneFailure::total(failures), "{complaint}");
            self.told = Some((first.constraint.clone(), Instant::now()));
        }
    }
}
