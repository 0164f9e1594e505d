//! Marks rows of applications' tables (`tidings adopt --mark`) once their notifications
//! are marked as sent.
//!
//! This calls functions of applications, which may wait for locks, be slow, or fail. So it
//! is a task of its own with a session of its own, which nothing else waits for. What it
//! loses, because a row is locked, the queue is full, or a bridge has crashed, it finds
//! again by itself: `tidings_mark_adopted` also reads all notifications over and over,
//! slowly.
//!
//! Without such a table, it has no session and does nothing.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
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

/// How many ids may wait; further ones are found later.
const WAITING: usize = 10_000;

/// How many rows are marked at once.
const AT_ONCE: u16 = 1_000;

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

/// Schema and name of a table whose rows are marked.
pub type MarkedTable = (String, String);

/// What is to be marked, and where.
#[derive(Debug, Default)]
pub struct AdoptedMarks {
    tables: Mutex<Vec<MarkedTable>>,
    ids: Mutex<VecDeque<i64>>,
    /// Notified when there are ids, or other tables.
    news: Notify,
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

    fn take(&self) -> Vec<i64> {
        let mut waiting = self.ids.lock();
        let count = waiting.len().min(AT_ONCE.into());
        waiting.drain(..count).collect()
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
    backoff: Backoff,
    /// When to try again after a failure.
    retry_at: Instant,
    /// The number of rows that the application can mark in time.
    at_once: u16,
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
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
            retry_at: Instant::now(),
            at_once: AT_ONCE,
            outage: OutageLog::default(),
        }
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
                self.marks.news.notified().await;
                continue;
            }
            courses.retain(|table, _| tables.contains(table));
            let ids = self.marks.take();
            for table in tables {
                let course = courses.entry(table.clone()).or_insert_with(Course::new);
                if course.retry_at <= Instant::now() {
                    self.mark(&mut session, &table, course, &ids).await;
                }
            }
            if ids.len() < usize::from(AT_ONCE) {
                let news = timeout(SWEEP_EVERY, self.marks.news.notified());
                if news.await.is_ok() {
                    sleep(COLLECT).await;
                }
            }
        }
    }

    /// Marks rows of one table: a page of those whose marks may have been lost, and those of
    /// these notifications.
    async fn mark(
        &self,
        session: &mut Option<Borrowed>,
        table: &MarkedTable,
        course: &mut Course,
        ids: &[i64],
    ) {
        let begin = Instant::now();
        let mut failure = None;
        let pages = ids.chunks(course.at_once.into()).map(Some);
        for page in [None].into_iter().chain(pages) {
            if begin.elapsed() > TURN {
                break;
            }
            match self.call(session, table, page, course.at_once).await {
                // The application's function has marked the other rows.
                Ok(reason) => {
                    course.at_once = (course.at_once * 2).min(AT_ONCE);
                    course.backoff.reset();
                    failure = reason.or(failure);
                }
                Err(error) => {
                    // The session may be busy or lost.
                    *session = None;
                    course.at_once = (course.at_once / 10).max(1);
                    course.retry_at = Instant::now() + course.backoff.next_delay();
                    log(table, course, &ErrorChain(&error).to_string());
                    return;
                }
            }
        }
        match failure {
            Some(failure) => log(table, course, &failure),
            None if course.outage.is_over() => {
                let (schema, table) = table;
                info!(schema, table, "rows of {schema}.{table} are marked again");
            }
            None => {}
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

fn log((schema, table): &MarkedTable, course: &mut Course, error: &str) {
    if course.outage.is_news(error, Instant::now().into_std()) {
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
        let first = marks.take();
        assert_eq!(first, (1..=i64::from(AT_ONCE)).collect::<Vec<_>>());
        let rest = (0..)
            .map(|_| marks.take().len())
            .take_while(|&count| count > 0);
        assert_eq!(first.len() + rest.sum::<usize>(), WAITING);
    }
}
