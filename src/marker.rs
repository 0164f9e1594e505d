//! Marks rows as sent once they have been written to a socket.
//!
//! A mark that is lost only means that a row comes again on the user's next
//! first connection, so marks are collected, written together, and never waited
//! for.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    activity::Activity,
    backoff::Backoff,
    health::Health,
    history::Incarnation,
    pool::{Pool, QueryError},
    rarely::Failing,
    sql::Sql,
};

/// How long marks are collected: short enough that `sent` shows at once to a
/// person, long enough that a busy bridge marks hundreds of rows a statement.
const COLLECT: Duration = Duration::from_millis(20);

/// Rows in one statement.
const ROWS_AT_ONCE: usize = 1_000;

/// Marks that are kept while the database is away: some 40 MB. Beyond that the
/// oldest rows lose theirs, and may be delivered again.
const KEPT: usize = 1_000_000;

/// How long one statement may take.
const MARK_LIMIT: Duration = Duration::from_secs(10);

/// The wait after a failure, or when rows were locked by someone else.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// How often the last flush is tried before the bridge stops without it.
const LAST_TRIES: usize = 3;

/// Where connections report what they have written.
///
/// A row is named by the server's incarnation too: after a failover or a crash
/// another row may bear the same id, and nobody was sent that one.
#[derive(Debug, Default)]
pub struct Marks {
    written: Mutex<BTreeSet<(Incarnation, i64)>>,
    news: Notify,
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
    /// Tries to write them that failed.
    pub failures: u64,
    /// Rows that go without a mark, because too many were waiting for theirs.
    pub lost: u64,
}

impl Marks {
    /// These rows have been handed to a socket. Never waits.
    pub fn written(&self, incarnation: Incarnation, rows: impl IntoIterator<Item = i64>) {
        self.delivered.inc_by(self.keep(incarnation, rows));
        self.news.notify_one();
    }

    /// What has become of them.
    pub fn counts(&self) -> MarkCounts {
        MarkCounts {
            delivered: self.delivered.get(),
            unmarked: self.lock().len(),
            failures: self.failures.get(),
            lost: self.lost.get(),
        }
    }

    /// Returns how many they are.
    fn keep(&self, incarnation: Incarnation, rows: impl IntoIterator<Item = i64>) -> u64 {
        let mut written = self.lock();
        let mut count = 0;
        written.extend(rows.into_iter().map(|row| {
            count += 1;
            (incarnation, row)
        }));
        while written.len() > KEPT {
            written.pop_first();
            self.lost.inc();
        }
        count
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(Incarnation, i64)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the oldest rows of one incarnation, at most [`ROWS_AT_ONCE`].
    fn take(&self) -> Option<(Incarnation, Vec<i64>)> {
        let mut written = self.lock();
        let incarnation = written.first()?.0;
        let mut rows = Vec::new();
        while rows.len() < ROWS_AT_ONCE
            && let Some(&(other, row)) = written.first()
            && other == incarnation
        {
            written.pop_first();
            rows.push(row);
        }
        Some((incarnation, rows))
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
    /// Where it is told that marks can't be written.
    pub health: Arc<Health>,
    /// Where they are counted.
    pub activity: Arc<Activity>,
}

/// Whether all that was asked for is marked now.
enum Marked {
    All,
    /// Another session has locked some of the rows; they are kept for later.
    ButLocked,
}

impl Marker {
    /// Writes marks until `stop`, then what is left.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut failing = Failing::default();
        while stop
            .run_until_cancelled(self.marks.news.notified())
            .await
            .is_some()
        {
            if stop.run_until_cancelled(sleep(COLLECT)).await.is_none() {
                break;
            }
            // An error that stops the flush keeps its rows.
            let pause = match self.flush().await {
                Ok(Marked::All) => {
                    self.health.marked();
                    backoff.reset();
                    failing.is_over();
                    continue;
                }
                Ok(Marked::ButLocked) => backoff.next_delay(),
                Err(error) => {
                    let delay = backoff.next_delay();
                    let reason = error.to_string();
                    let rows = self.marks.counts().unmarked;
                    if failing.is_news(&reason, Instant::now().into_std()) {
                        warn!(
                            %error, rows,
                            "could not mark {rows} rows as sent, trying until it works: {error}"
                        );
                    } else {
                        debug!(%error, rows, "could not mark {rows} rows as sent: {error}");
                    }
                    self.health.not_marked(reason);
                    delay
                }
            };
            self.marks.news.notify_one();
            stop.run_until_cancelled(sleep(pause)).await;
        }
        self.last_flush().await;
    }

    async fn last_flush(&self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        for _ in 0..LAST_TRIES {
            match self.flush().await {
                Ok(_) => return,
                Err(error) => warn!(
                    %error,
                    "could not mark rows as sent before stopping, they may be sent again: {error}"
                ),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Marks all that has been collected.
    async fn flush(&self) -> Result<Marked, QueryError> {
        let mut locked = Vec::new();
        let outcome = loop {
            let Some((incarnation, rows)) = self.marks.take() else {
                break Ok(());
            };
            match self.mark(incarnation, &rows).await {
                Ok(still_locked) => locked.push((incarnation, still_locked)),
                Err(error) => {
                    self.marks.failures.inc();
                    self.marks.keep(incarnation, rows);
                    break Err(error);
                }
            }
        };
        let mut marked = Marked::All;
        for (incarnation, rows) in locked.into_iter().filter(|(_, rows)| !rows.is_empty()) {
            marked = Marked::ButLocked;
            self.marks.keep(incarnation, rows);
        }
        outcome.map(|()| marked)
    }

    /// Returns the rows that another session has locked.
    async fn mark(&self, of: Incarnation, rows: &[i64]) -> Result<Vec<i64>, QueryError> {
        let answer = self
            .pool
            .query(
                MARK_LIMIT,
                &self.sql.mark_sent,
                &[
                    (&rows, Type::INT8_ARRAY),
                    (&of.timeline, Type::INT4),
                    (&of.since, Type::TIMESTAMPTZ),
                ],
            )
            .await?;
        let mut locked = Vec::new();
        for row in &answer {
            match (row.try_get("id")?, row.try_get::<_, Option<i64>>("marked")?) {
                (Some(id), _) => locked.push(id),
                (None, Some(marked)) => self.activity.marked(marked.unsigned_abs()),
                // The server has crashed since, or the session leads to another one:
                // the rows go without their marks.
                (None, None) => self.pool.renew(),
            }
        }
        Ok(locked)
    }
}
