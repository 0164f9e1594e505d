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
    backoff::{Backoff, jittered},
    database::DatabaseUrl,
    retention::{Batch, Left, Pace, Prune, PruneError},
    schema::SchemaName,
};

/// It works for a tenth of the time at most: ten thousand rows a second on a
/// small machine, and little that anybody else feels.
const PACE: Pace = Pace { rest: 9 };

/// The longest wait after a failure, which may last until a DBA has time.
const RETRY_LONGEST: Duration = Duration::from_secs(60 * 60);

/// How many rows this bridge has removed.
#[derive(Debug, Default)]
pub struct Pruned(AtomicU64);

impl Pruned {
    /// Since it started.
    pub fn rows(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
        let mut prune = Prune::open(&self.url, &self.schema, self.sent_for).await?;
        if !prune.take_turn().await? {
            debug!("another bridge removes old rows");
            return Ok(());
        }
        loop {
            let begin = Instant::now();
            let rows = self.walk(&mut prune).await?;
            backoff.reset();
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
                    self.pruned.0.fetch_add(rows, Ordering::Relaxed);
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
