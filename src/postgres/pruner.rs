//! Removes old rows in the background of `tidings serve`, if this is configured.
//!
//! If several bridges use the same table, one of them does it: the one that holds an
//! advisory lock, in a session of its own. When that bridge stops, another one takes
//! over.

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
        retention::{
            Left, Prune, PruneBatch, PruneError, PrunePace, PruneTurn, Retention, Retentions, Retry,
        },
        schema::SchemaName,
    },
    runtime::{
        backoff::{Backoff, jittered},
        error_chain::ErrorChain,
    },
};

/// It works at most a tenth of the time. This removes ten thousand rows per second on a
/// small machine and hardly affects other sessions.
const PACE: PrunePace = PrunePace { rest: 9 };

/// The longest wait after a failure, which may last until a DBA has time.
const RETRY_LONGEST: Duration = Duration::from_secs(60 * 60);

/// At most one warning in this time about rows that can't be removed for the same reason.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60 * 60);

/// Counts the rows that this bridge has removed.
#[derive(Debug, Default)]
pub struct Pruned {
    removed: AtomicU64,
    failed: AtomicU64,
}

impl Pruned {
    /// Rows removed since the bridge started.
    pub fn rows(&self) -> u64 {
        self.removed.load(Ordering::Relaxed)
    }

    /// Rows that can't be removed at the moment.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The task that removes rows.
#[derive(Debug)]
pub struct Pruner {
    /// A URL that leads to sessions of our own.
    pub url: DatabaseUrl,
    pub schema: SchemaName,
    pub retentions: Retentions,
    /// How long to wait when no other row is old enough.
    pub every: Duration,
    pub pruned: Arc<Pruned>,
}

impl Pruner {
    /// Removes rows until `stop`. A batch that is interrupted was either committed or
    /// rolled back.
    pub async fn run(self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.prune()).await;
    }

    async fn prune(&self) {
        let removed = |retention, event| match retention {
            Retention::Forever => String::new(),
            Retention::For(duration) => {
                format!("{} after {event}, ", humantime::format_duration(duration))
            }
        };
        let Retentions { sent, topics } = self.retentions;
        info!(
            "rows are removed {}{}and an hour after they have expired",
            removed(sent, "they were sent"),
            removed(topics, "those for topics were created")
        );
        let mut backoff = Backoff::new(self.every, RETRY_LONGEST);
        loop {
            let delay = match self.take_turn(&mut backoff).await {
                Ok(()) => {
                    backoff.reset();
                    jittered(self.every)
                }
                Err(error) => {
                    let (delay, error) = (backoff.next_delay(), ErrorChain(&error));
                    warn!(
                        %error, delay_ms = delay.as_millis() as u64,
                        "could not remove old rows, retrying in {}: {error}",
                        humantime::format_duration(Duration::from_secs(delay.as_secs()))
                    );
                    delay
                }
            };
            sleep(delay).await;
        }
    }

    /// Returns immediately if another bridge removes rows; otherwise it only returns an
    /// error.
    async fn take_turn(&self, backoff: &mut Backoff) -> Result<(), PruneError> {
        let mut prune =
            Prune::open(&self.url, &self.schema, self.retentions, Retry::WhenDue).await?;
        match prune.take_turn().await? {
            PruneTurn::Ours => {}
            PruneTurn::Another => {
                debug!("another bridge is removing old rows");
                return Ok(());
            }
            PruneTurn::Obstructed(holder) => warn!(
                "{holder} holds the advisory lock for removing old rows, but may not remove any: \
                 this bridge removes them without the lock; `tidings check` shows the statement \
                 that ends that session"
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
            complaints.log(&failures);
            if rows > 0 {
                let seconds = begin.elapsed().as_secs();
                debug!(rows, seconds, "removed {rows} old rows in {seconds} s");
            }
            sleep(self.every).await;
        }
    }

    /// Removes rows from the oldest to the first that is too young.
    async fn walk(&self, prune: &mut Prune) -> Result<u64, PruneError> {
        let mut removed = 0;
        loop {
            let begin = Instant::now();
            match prune.batch().await? {
                PruneBatch::Removed { rows, left } => {
                    self.pruned.removed.fetch_add(rows, Ordering::Relaxed);
                    removed += rows;
                    if left == Left::Nothing {
                        return Ok(removed);
                    }
                }
                // The other session does the same work.
                PruneBatch::Busy => return Ok(removed),
            }
            sleep(PACE.after(begin)).await;
        }
    }
}

/// The last warning about rows that can't be removed.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<(Option<String>, Instant)>,
}

impl Complaints {
    /// Logs a warning, unless it has logged the same one recently.
    fn log(&mut self, failures: &[PruneFailure]) {
        let (Some(complaint), Some(first)) = (complaint(failures), failures.first()) else {
            self.last = None;
            return;
        };
        let is_known = self.last.as_ref().is_some_and(|(constraint, at)| {
            *constraint == first.constraint && at.elapsed() < COMPLAIN_EVERY
        });
        if !is_known {
            warn!(rows = PruneFailure::total(failures), "{complaint}");
            self.last = Some((first.constraint.clone(), Instant::now()));
        }
    }
}
