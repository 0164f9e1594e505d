//! Marks rows of applications' tables (`tidings adopt --mark`) once their notifications
//! are marked as sent.
//!
//! This calls functions of applications, which may wait for locks, be slow, or fail. So it
//! is a task of its own with a session of its own, which nothing else waits for. Rows that
//! can't be marked wait in a queue of their table, and all are tried a second time, since
//! the application may have locked some. What is lost nevertheless, because a row stays
//! locked, a queue is full, or a bridge has crashed, is found again: `tidings_mark_adopted`
//! also reads all notifications over and over, slowly.
//!
//! Without such a table, it has no session and does nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_postgres::types::Type;
use tracing::{debug, info, warn};

use crate::{
    postgres::{
        connect::{Borrowed, ConnectError, Queries},
        database::Database,
        pool::Parameter,
    },
    runtime::{backoff::Backoff, error_chain::ErrorChain, log_throttle::OutageLog},
};

/// How many ids may wait in each queue; further ones are found later.
const WAITING: usize = 10_000;

/// How many rows are marked at once.
const AT_ONCE: u16 = 1_000;

/// If a call takes longer, the next one is not for more rows.
const QUICK: Duration = Duration::from_millis(500);

/// After this time rows are tried again, in case they were locked.
const AGAIN: Duration = Duration::from_secs(5);

/// How long ids are collected, so that they share a statement.
const COLLECT: Duration = Duration::from_millis(100);

/// How often to look for marks that were lost. The database limits this for all bridges
/// together.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long one call may take. The server cancels it earlier (`SETTINGS`).
const CALL_LIMIT: Duration = Duration::from_secs(4);

/// A lock for which a trigger of the application waits is given up long before the server
/// looks for deadlocks (1 s), which could fail the application's transaction instead.
/// Marks that are lost are found again, so no commit waits for the disk.
const SETTINGS: &str = "set local statement_timeout = '2s'; set local lock_timeout = '100ms'; \
                        set local synchronous_commit = off;";

/// A table whose rows take longer leaves the rest for later, so that others get their turn.
const TURN: Duration = Duration::from_secs(2);

/// The first and the longest wait after a call has failed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// A table counts as failing for this long after a failure: a row that can't be marked is
/// tried again in the next round of `tidings_mark_adopted`, ten seconds after the last.
const FAILING: Duration = Duration::from_secs(15);

/// Schema and name of a table whose rows are marked.
pub type MarkedTable = (String, String);

/// What is to be marked, and where.
#[derive(Debug, Default)]
pub struct AdoptedMarks {
    tables: Mutex<Vec<MarkedTable>>,
    ids: Mutex<VecDeque<i64>>,
    /// Notified when there are ids, or other tables.
    news: Notify,
    /// How many ids wait in the queues of the tables.
    queued: AtomicUsize,
    failures: AtomicU64,
    failing: AtomicUsize,
}

/// How marking rows of applications' tables goes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AdoptedMarkCounts {
    /// Notifications that were marked as sent, and whose rows are to be marked now.
    #[serde(rename = "adopted_marks_waiting")]
    pub waiting: usize,
    /// Attempts in which not all rows could be marked.
    #[serde(rename = "adopted_mark_failures")]
    pub failures: u64,
    /// Tables in which rows can't be marked at the moment.
    #[serde(rename = "adopted_tables_failing")]
    pub failing: usize,
}

impl AdoptedMarks {
    /// The tables, as the database lists them.
    pub fn set_tables(&self, tables: Vec<MarkedTable>) {
        let mut known = self.tables.lock();
        if *known != tables {
            *known = tables;
            drop(known);
            self.news.notify_one();
        }
    }

    /// These notifications were marked as sent. Never blocks.
    pub fn sent(&self, ids: impl Iterator<Item = i64>) {
        if self.tables.lock().is_empty() {
            return;
        }
        let mut waiting = self.ids.lock();
        let room = WAITING - waiting.len();
        waiting.extend(ids.take(room));
        drop(waiting);
        self.news.notify_one();
    }

    pub fn counts(&self) -> AdoptedMarkCounts {
        AdoptedMarkCounts {
            waiting: self.ids.lock().len() + self.queued.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            failing: self.failing.load(Ordering::Relaxed),
        }
    }

    fn take(&self) -> VecDeque<i64> {
        std::mem::take(&mut self.ids.lock())
    }
}

/// The task that marks them.
#[derive(Debug)]
pub struct AdoptedMarker {
    pub marks: Arc<AdoptedMarks>,
    pub database: Database,
}

/// How marking the rows of one table goes.
#[derive(Debug)]
struct Course {
    /// Ids to be tried now, and whether for the first time.
    due: VecDeque<(i64, bool)>,
    /// Ids to be tried a second time, and when.
    again: VecDeque<(Instant, i64)>,
    backoff: Backoff,
    /// When to try again after a failure.
    retry_at: Instant,
    /// The number of rows that the application can mark in time.
    at_once: u16,
    /// The same for notifications whose marks may have been lost.
    at_once_lost: u16,
    failed_at: Instant,
    outage: OutageLog,
}

/// Why rows of a table could not be marked.
#[derive(Debug, thiserror::Error)]
enum MarkAdoptedError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error("there was no answer within {} s", CALL_LIMIT.as_secs())]
    TimedOut,
}

impl Course {
    fn new() -> Self {
        Self {
            due: VecDeque::new(),
            again: VecDeque::new(),
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
            retry_at: Instant::now(),
            failed_at: Instant::now(),
            at_once: AT_ONCE,
            at_once_lost: AT_ONCE,
            outage: OutageLog::default(),
        }
    }

    /// Adds ids that were sent, and ids whose retry is due.
    fn fill(&mut self, ids: &VecDeque<i64>) {
        let now = Instant::now();
        let ready = self.again.partition_point(|&(at, _)| at <= now);
        let ready = self.again.drain(..ready).map(|(_, id)| (id, false));
        self.due.extend(ready);
        let room = WAITING.saturating_sub(self.due.len());
        self.due.extend(ids.iter().take(room).map(|&id| (id, true)));
    }

    /// The first `count` ids were tried.
    fn tried(&mut self, count: usize) {
        let at = Instant::now() + AGAIN;
        let first = self.due.drain(..count).filter(|&(_, is_first)| is_first);
        let room = WAITING - self.again.len();
        self.again.extend(first.take(room).map(|(id, _)| (at, id)));
    }

    /// Whether rows wait that may be tried now.
    fn is_busy(&self) -> bool {
        !self.due.is_empty() && self.retry_at <= Instant::now()
    }
}

impl AdoptedMarker {
    /// Marks rows forever. May be dropped at any time.
    pub async fn run(self) {
        let mut session = None;
        let mut courses: HashMap<MarkedTable, Course> = HashMap::new();
        loop {
            let tables = self.marks.tables.lock().clone();
            if tables.is_empty() {
                (session, courses) = (None, HashMap::new());
                self.marks.queued.store(0, Ordering::Relaxed);
                self.marks.failing.store(0, Ordering::Relaxed);
                self.marks.news.notified().await;
                continue;
            }
            courses.retain(|table, _| tables.contains(table));
            let ids = self.marks.take();
            for table in tables {
                let course = courses.entry(table.clone()).or_insert_with(Course::new);
                course.fill(&ids);
                if course.retry_at <= Instant::now() {
                    self.mark(&mut session, &table, course).await;
                }
            }
            let queued = courses.values().map(|course| course.due.len()).sum();
            self.marks.queued.store(queued, Ordering::Relaxed);
            let failing = courses.values().filter(|course| course.outage.is_on());
            self.marks.failing.store(failing.count(), Ordering::Relaxed);
            if !courses.values().any(Course::is_busy) {
                let news = timeout(SWEEP_EVERY, self.marks.news.notified());
                if news.await.is_ok() {
                    sleep(COLLECT).await;
                }
            }
        }
    }

    /// Marks rows of one table: first the due ones, then a page of rows whose marks may have
    /// been lost.
    async fn mark(&self, session: &mut Option<Borrowed>, table: &MarkedTable, course: &mut Course) {
        let begin = Instant::now();
        let mut failure = None;
        loop {
            let due = course.due.iter().take(course.at_once.into());
            let due: Vec<i64> = due.map(|&(id, _)| id).collect();
            let page = (!due.is_empty() && begin.elapsed() < TURN).then_some(due);
            let count = page.as_ref().map_or(0, Vec::len);
            let most = match page {
                Some(_) => &mut course.at_once,
                None => &mut course.at_once_lost,
            };
            let called = Instant::now();
            match self.call(session, table, page.as_deref(), *most).await {
                // The application's function has marked the other rows.
                Ok(reason) => {
                    if called.elapsed() < QUICK {
                        *most = (*most * 2).min(AT_ONCE);
                    }
                    course.tried(count);
                    course.backoff.reset();
                    failure = reason.or(failure);
                }
                Err(error) => {
                    // The session may be busy or lost.
                    *session = None;
                    let is_alone = *most == 1;
                    *most = (*most / 10).max(1);
                    // It keeps no others waiting.
                    if is_alone {
                        course.tried(count);
                    }
                    course.retry_at = Instant::now() + course.backoff.next_delay();
                    self.failed(table, course, &ErrorChain(&error).to_string());
                    return;
                }
            }
            if page.is_none() {
                break;
            }
        }
        match failure {
            Some(failure) => self.failed(table, course, &failure),
            None if course.failed_at.elapsed() > FAILING && course.outage.is_over() => {
                let (schema, table) = table;
                info!(schema, table, "rows of {schema}.{table} are marked again");
            }
            None => {}
        }
    }

    fn failed(&self, (schema, table): &MarkedTable, course: &mut Course, error: &str) {
        let now = Instant::now();
        self.marks.failures.fetch_add(1, Ordering::Relaxed);
        course.failed_at = now;
        if course.outage.is_news(error, now.into_std()) {
            warn!(
                schema,
                table,
                error,
                "could not mark all rows of {schema}.{table} that were sent, retrying: {error}"
            );
        } else {
            debug!(
                schema,
                table, error, "could not mark rows of {schema}.{table}: {error}"
            );
        }
    }

    /// Returns why some rows could not be marked.
    async fn call(
        &self,
        session: &mut Option<Borrowed>,
        table: &MarkedTable,
        ids: Option<&[i64]>,
        most: u16,
    ) -> Result<Option<String>, MarkAdoptedError> {
        let calling = async {
            let client = match session {
                Some(client) => client,
                None => {
                    let url = &self.database.direct_url;
                    session.insert(Borrowed::to_write_with(url, SETTINGS).await?)
                }
            };
            let most = i32::from(most);
            let parameters: [Parameter<'_>; 4] = [
                (&table.0, Type::NAME),
                (&table.1, Type::NAME),
                (&ids, Type::INT8_ARRAY),
                (&most, Type::INT4),
            ];
            let query = &self.database.sql.mark_adopted;
            let row = client.query_typed_one(query, &parameters).await?;
            Ok::<Option<String>, MarkAdoptedError>(row.try_get("failure")?)
        };
        let called = timeout(CALL_LIMIT, calling).await;
        called.unwrap_or(Err(MarkAdoptedError::TimedOut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_table_nothing_waits_and_with_one_only_so_much() {
        let marks = AdoptedMarks::default();
        marks.sent(1..=3);
        assert!(marks.take().is_empty());
        marks.set_tables(vec![("shop".to_owned(), "orders".to_owned())]);
        marks.sent(1..=i64::MAX);
        assert_eq!(marks.counts().waiting, WAITING);
        let ids = marks.take();
        assert!(ids.iter().copied().eq(1..=WAITING as i64));
        assert_eq!(marks.counts().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_row_is_tried_again_once_and_those_that_were_not_tried_stay() {
        let mut course = Course::new();
        course.fill(&(1..=3).collect());
        course.tried(2);
        assert_eq!(course.due, [(3, true)]);
        course.fill(&VecDeque::new());
        assert_eq!(course.due, [(3, true)]);
        tokio::time::advance(AGAIN).await;
        course.fill(&(4..=4).collect());
        assert_eq!(course.due, [(3, true), (1, false), (2, false), (4, true)]);
        course.tried(4);
        assert!(course.due.is_empty());
        assert_eq!(course.again.len(), 2);
        // Whatever fails, there are only so many.
        for _ in 0..3 {
            course.fill(&(1..=WAITING as i64).collect());
        }
        assert_eq!(course.due.len(), WAITING);
        course.tried(WAITING);
        assert_eq!(course.again.len(), WAITING);
    }
}
