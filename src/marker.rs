//! Marks rows as sent once they have been written to a socket.
//!
//! A mark that is lost only means that a row comes again on the user's next
//! first connection, so marks are collected, written together, and never waited
//! for. Which rows are tried when is decided by `queue.rs`.

mod queue;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::queue::{Batch, Lane, Next, Outcome, Queue};
use crate::{
    activity::Activity,
    health::{Health, Stuck},
    history::Incarnation,
    pool::{Pool, QueryError},
    rarely::Failing,
    sql::Sql,
};

/// How long one statement may take. While one for fresh rows isn't answered, no
/// other fresh row is marked; at shutdown nobody waits for longer than this.
const MARK_LIMIT: Duration = Duration::from_secs(3);

/// How often a database that can't be reached is tried before the bridge stops
/// without having written the last marks.
const LAST_TRIES: u32 = 3;

/// Where connections report what they have written.
#[derive(Debug, Default)]
pub struct Marks {
    queue: Mutex<Queue>,
    /// There are fresh rows.
    fresh: Notify,
    /// There are held rows, or the database has marked some.
    held: Notify,
    delivered: Counter,
    failures: Counter,
    lost: Counter,
}

/// What has become of the rows that were written to sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct MarkCounts {
    /// Rows that were written to a socket; a row counts for each.
    pub delivered: u64,
    /// Rows whose marks are still to be written.
    pub unmarked: usize,
    /// Those of them that can't be marked at the moment.
    pub stuck: usize,
    /// Tries to write them that failed.
    pub failures: u64,
    /// Rows that go without a mark, because too many were waiting for theirs.
    pub lost: u64,
}

impl Marks {
    /// These rows have been handed to a socket. Never waits.
    pub fn written(&self, incarnation: Incarnation, rows: impl IntoIterator<Item = i64>) {
        let mut count = 0;
        let counted = rows.into_iter().inspect(|_| count += 1);
        let lost = self.queue().add(incarnation, counted);
        self.delivered.inc_by(count);
        self.lost.inc_by(lost);
        self.fresh.notify_one();
    }

    /// What has become of them.
    pub fn counts(&self) -> MarkCounts {
        let (unmarked, stuck) = {
            let queue = self.queue();
            (queue.len(), queue.stuck_rows())
        };
        MarkCounts {
            delivered: self.delivered.get(),
            unmarked,
            stuck,
            failures: self.failures.get(),
            lost: self.lost.get(),
        }
    }

    /// No code panics while it holds the lock.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when the lane may have something to do.
    async fn until(&self, lane: Lane) {
        let news = match lane {
            Lane::Fresh => &self.fresh,
            Lane::Held => &self.held,
        };
        let next = self.queue().next(lane, Instant::now());
        match next {
            Next::Now => {}
            Next::Idle => news.notified().await,
            Next::At(at) => tokio::select! {
                () = sleep_until(at) => {}
                () = news.notified() => {}
            },
        }
    }
}

/// The task that writes the marks.
#[derive(Debug)]
pub struct Marker {
    /// Where the marks are collected.
    pub marks: Arc<Marks>,
    /// Connections to write them with.
    pub pool: Pool,
    /// What to run.
    pub sql: Arc<Sql>,
    /// Where it is told that rows can't be marked.
    pub health: Arc<Health>,
    /// Where they are counted.
    pub activity: Arc<Activity>,
}

impl Marker {
    /// Writes marks until `stop`, then what is left and can be marked at once.
    /// May be dropped at any time: rows that were not marked by then are
    /// delivered again.
    pub async fn run(self, stop: CancellationToken) {
        let told = Mutex::default();
        tokio::join!(self.mark_fresh(&stop, &told), self.mark_held(&stop, &told));
        self.last_flush().await;
    }

    async fn mark_fresh(&self, stop: &CancellationToken, told: &Mutex<Failing>) {
        let lane = Lane::Fresh;
        while stop
            .run_until_cancelled(self.marks.until(lane))
            .await
            .is_some()
        {
            let collect = self.marks.queue().collect();
            if stop.run_until_cancelled(sleep(collect)).await.is_none() {
                return;
            }
            while let Some(batch) = self.take(lane) {
                self.mark(batch, told).await;
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    async fn mark_held(&self, stop: &CancellationToken, told: &Mutex<Failing>) {
        let lane = Lane::Held;
        while stop
            .run_until_cancelled(self.marks.until(lane))
            .await
            .is_some()
        {
            if let Some(batch) = self.take(lane) {
                self.mark(batch, told).await;
            }
        }
    }

    /// Small steps, none of which waits for a row that is locked or fails.
    async fn last_flush(&self) {
        let told = Mutex::default();
        let mut tries = 0;
        self.marks.queue().hurry(Instant::now());
        for lane in [Lane::Fresh, Lane::Held] {
            while tries < LAST_TRIES {
                if let Some(batch) = self.take(lane) {
                    match self.mark(batch, &told).await {
                        Answered::Yes => {}
                        Answered::Refused => tries += 1,
                        // The next would not be answered either.
                        Answered::Never => tries = LAST_TRIES,
                    }
                    continue;
                }
                let next = self.marks.queue().next(lane, Instant::now());
                match next {
                    Next::Now => {}
                    // After a failure of the database.
                    Next::At(at) if tries > 0 && lane == Lane::Fresh => sleep_until(at).await,
                    Next::At(_) | Next::Idle => break,
                }
            }
        }
        let left = self.marks.counts().unmarked;
        if left > 0 {
            warn!(
                rows = left,
                "stopping with {left} rows that were sent and could not be marked: they may be \
                 sent again"
            );
        }
    }

    fn take(&self, lane: Lane) -> Option<Batch> {
        self.marks.queue().take(lane, Instant::now())
    }

    /// Runs one statement, and notes what became of it.
    async fn mark(&self, batch: Batch, told: &Mutex<Failing>) -> Answered {
        let outcome = match self.try_mark(&batch).await {
            Ok(locked) => Outcome::Marked { locked },
            Err(error) => {
                self.marks.failures.inc();
                let reason = error.to_string();
                match error {
                    error if error.is_of_rows() => Outcome::RowFailed(reason),
                    QueryError::TimedOut(_) => Outcome::TimedOut(reason),
                    _ => Outcome::DatabaseFailed(reason),
                }
            }
        };
        let answered = match &outcome {
            Outcome::Marked { .. } | Outcome::RowFailed(_) => Answered::Yes,
            Outcome::DatabaseFailed(_) => Answered::Refused,
            Outcome::TimedOut(_) => Answered::Never,
        };
        let failure = match &outcome {
            Outcome::Marked { .. } => None,
            Outcome::RowFailed(reason)
            | Outcome::TimedOut(reason)
            | Outcome::DatabaseFailed(reason) => Some(reason.clone()),
        };
        let (lost, stuck) = {
            let mut queue = self.marks.queue();
            let lost = queue.settle(batch, outcome, Instant::now());
            (lost, queue.stuck())
        };
        self.marks.lost.inc_by(lost);
        self.marks.held.notify_one();
        self.tell(told, failure, stuck.as_ref());
        self.health.marks(stuck);
        answered
    }

    fn tell(&self, told: &Mutex<Failing>, failure: Option<String>, stuck: Option<&Stuck>) {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let (is_news, is_over) = match (&failure, stuck) {
            (Some(reason), Some(_)) => (told.is_news(reason, Instant::now().into_std()), false),
            (_, None) => (false, told.is_over()),
            (None, Some(_)) => (false, false),
        };
        drop(told);
        if is_over {
            info!("all rows that were sent are marked again");
        }
        let (Some(error), Some(Stuck { rows, .. })) = (failure, stuck) else {
            return;
        };
        if is_news {
            warn!(
                error,
                rows, "could not mark {rows} rows as sent, trying until it works: {error}"
            );
        } else {
            debug!(error, rows, "could not mark {rows} rows as sent: {error}");
        }
    }

    /// Returns the rows that another session has locked.
    async fn try_mark(&self, batch: &Batch) -> Result<BTreeSet<i64>, QueryError> {
        let Batch {
            incarnation: of,
            rows,
            ..
        } = batch;
        // Rows that can't be marked must not occupy the connection of the others.
        let pool = match batch.lane() {
            Lane::Fresh => self.pool.for_marks(),
            Lane::Held => self.pool.clone(),
        };
        let answer = pool
            .query(
                MARK_LIMIT,
                &self.sql.mark_sent,
                &[
                    (rows, Type::INT8_ARRAY),
                    (&of.timeline, Type::INT4),
                    (&of.since, Type::TIMESTAMPTZ),
                ],
            )
            .await?;
        let mut locked = BTreeSet::new();
        for row in &answer {
            match (row.try_get("id")?, row.try_get::<_, Option<i64>>("marked")?) {
                (Some(id), _) => {
                    locked.insert(id);
                }
                (None, Some(marked)) => self.activity.marked(marked.unsigned_abs()),
                // The server has crashed since, or the session leads to another one:
                // the rows go without their marks.
                (None, None) => self.pool.renew(),
            }
        }
        Ok(locked)
    }
}

/// Whether the database has answered a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Yes,
    /// It can't be reached, or can't mark anything.
    Refused,
    Never,
}
