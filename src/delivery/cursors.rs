//! Up to where users have received the rows of their topics, for those who connect without
//! a last event id.
//!
//! A cursor is a position of one stream, as of its newest settled write. Losing one causes
//! duplicates, so cursors are collected and written together, and nothing waits for them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::{sync::Notify, time::sleep};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    delivery::hub::Hub,
    domain::{history::History, notification::UserId, position::Position, snapshot::Xid},
    postgres::{
        pool::{Pool, QueryError},
        queries::Sql,
    },
    runtime::{backoff::Backoff, error_chain::ErrorChain},
};

/// How many users' cursors may wait to be written: some 30 MB. Beyond that they are
/// dropped, and rows of topics are repeated.
const WAITING: usize = 100_000;

/// How many cursors one statement writes: it takes some milliseconds.
const AT_ONCE: usize = 1_000;

/// How long the first of many cursors waits for others.
const TOGETHER: Duration = Duration::from_millis(500);

/// The timeout of one statement. At shutdown nothing waits longer for one.
const WRITE_LIMIT: Duration = Duration::from_secs(3);

/// The first and the longest wait before a statement is retried.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq, Eq)]
struct WaitingCursor {
    history: History,
    position: Position,
}

/// Collects the cursors that streams report.
#[derive(Debug)]
pub struct Cursors {
    settle: Duration,
    every: Duration,
    waiting: Mutex<HashMap<UserId, Arc<WaitingCursor>>>,
    /// Notified when there are cursors.
    news: Notify,
    written: Counter,
    failures: Counter,
    lost: Counter,
}

/// Where users without a last event id continue, as counted by this bridge.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CursorCounts {
    /// Cursors that were passed to the database, whether or not it had a better one.
    pub cursors_written: u64,
    /// Failed statements.
    pub cursor_failures: u64,
    /// Cursors that were dropped because too many were waiting.
    pub lost_cursors: u64,
}

impl Cursors {
    /// A row counts as received once its connection has stayed open for `settle`. The
    /// cursor of a user who stays connected is written at most once in `every`.
    pub fn new(settle: Duration, every: Duration) -> Self {
        Self {
            settle,
            every,
            waiting: Mutex::default(),
            news: Notify::new(),
            written: Counter::default(),
            failures: Counter::default(),
            lost: Counter::default(),
        }
    }

    /// Has this position written as the user's cursor. Never blocks.
    pub fn put(&self, user: &UserId, history: History, position: Position) {
        let mut waiting = self.waiting.lock();
        if let Some(earlier) = waiting.get(user) {
            // Positions of two streams can't be joined: each may have rows that the other
            // has not received.
            if earlier.history == history && !position.covers(&earlier.position) {
                return;
            }
        } else if waiting.len() >= WAITING {
            self.lost.inc();
            return;
        }
        let cursor = WaitingCursor { history, position };
        waiting.insert(user.clone(), Arc::new(cursor));
        drop(waiting);
        self.news.notify_one();
    }

    pub fn counts(&self) -> CursorCounts {
        CursorCounts {
            cursors_written: self.written.get(),
            cursor_failures: self.failures.get(),
            lost_cursors: self.lost.get(),
        }
    }

    pub fn settle(&self) -> Duration {
        self.settle
    }

    pub fn every(&self) -> Duration {
        self.every
    }

    /// The user's cursor, if it has not been written yet.
    pub fn waiting(&self, user: &UserId, history: History) -> Option<Position> {
        let waiting = self.waiting.lock();
        let cursor = waiting.get(user)?;
        (cursor.history == history).then(|| cursor.position.clone())
    }

    /// Handles a crash of Postgres: ids of before may have been assigned again.
    fn take(&self, history: History) -> Vec<(UserId, Arc<WaitingCursor>)> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|_, cursor| cursor.history == history);
        let first = waiting.iter().take(AT_ONCE);
        first
            .map(|(user, cursor)| (user.clone(), Arc::clone(cursor)))
            .collect()
    }

    /// Forgets cursors that were written, unless they have moved since.
    fn forget(&self, written: &[(UserId, Arc<WaitingCursor>)]) {
        let mut waiting = self.waiting.lock();
        for (user, cursor) in written {
            if waiting
                .get(user)
                .is_some_and(|now| Arc::ptr_eq(now, cursor))
            {
                waiting.remove(user);
            }
        }
        if waiting.is_empty() {
            // An idle bridge keeps no memory of a past burst.
            *waiting = HashMap::new();
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().is_empty()
    }
}

/// The task that writes cursors.
#[derive(Debug)]
pub struct CursorWriter {
    pub cursors: Arc<Cursors>,
    /// Knows the history, and what is on disk.
    pub hub: Arc<Hub>,
    pub pool: Pool,
    pub sql: Arc<Sql>,
}

impl CursorWriter {
    /// Writes cursors until `stop`, then those that are left and can be written at once. May
    /// be dropped at any time.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let working = async {
            loop {
                if self.cursors.is_empty() {
                    self.cursors.news.notified().await;
                    sleep(TOGETHER).await;
                }
                match self.write().await {
                    Ok(()) => backoff.reset(),
                    Err(error) => {
                        self.failed(&error);
                        sleep(backoff.next_delay()).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(working).await;
        while !self.cursors.is_empty() {
            if let Err(error) = self.write().await {
                return self.failed(&error);
            }
        }
    }

    fn failed(&self, error: &QueryError) {
        self.cursors.failures.inc();
        let error = ErrorChain(error);
        debug!(%error, "could not write where users continue in their topics: {error}");
    }

    /// Writes some of the waiting cursors.
    async fn write(&self) -> Result<(), QueryError> {
        let tail = self.hub.tail();
        let History {
            system_identifier,
            incarnation,
        } = tail.history;
        let taken = self.cursors.take(tail.history);
        if taken.is_empty() {
            return Ok(());
        }
        let (mut users, mut floors) = (Vec::new(), Vec::new());
        let (mut open_of, mut open): (Vec<i64>, Vec<Xid>) = (Vec::new(), Vec::new());
        for (number, (user, cursor)) in (1..).zip(&taken) {
            users.push(user.as_str());
            floors.push(cursor.position.floor());
            let xids = cursor.position.open_xids();
            open_of.resize(open_of.len() + xids.len(), number);
            open.extend(xids);
        }
        self.pool
            .query(
                WRITE_LIMIT,
                &self.sql.write_cursors,
                &[
                    (&users, Type::TEXT_ARRAY),
                    (&floors, Type::XID8_ARRAY),
                    (&open_of, Type::INT8_ARRAY),
                    (&open, Type::XID8_ARRAY),
                    (&tail.safe, Type::XID8),
                    (&system_identifier, Type::INT8),
                    (&incarnation.timeline, Type::INT4),
                    (&incarnation.since, Type::TIMESTAMPTZ),
                ],
            )
            .await?;
        self.cursors.written.inc_by(taken.len() as u64);
        self.cursors.forget(&taken);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        history::{Incarnation, Since},
        snapshot::Snapshot,
    };

    const SETTLE: Duration = Duration::from_secs(2);
    const EVERY: Duration = Duration::from_secs(600);

    /// The position after everything below this transaction, except what was running.
    fn after(xid: u64, running: &[u64]) -> Position {
        let running = running.iter().copied().map(Xid).collect();
        Position::after(Some(Xid(xid - 1)), &Snapshot::new(Xid(xid), running))
    }

    #[test]
    fn a_cursor_is_replaced_by_one_that_covers_it_and_forgotten_once_it_is_stored() {
        let cursors = Cursors::new(SETTLE, EVERY);
        let alice = UserId::parse("alice").expect("a user");
        let crashed = History {
            incarnation: Incarnation {
                since: Since(7),
                ..Incarnation::default()
            },
            ..History::default()
        };
        let history = History::default();
        let put = |position| cursors.put(&alice, history, position);
        put(after(20, &[15]));
        // Another tab, which has received the row of 15 and not the latest ones.
        put(after(18, &[]));
        assert_eq!(cursors.waiting(&alice, history), Some(after(20, &[15])));
        put(after(21, &[]));
        let taken = cursors.take(history);
        assert_eq!(cursors.waiting(&alice, history), Some(after(21, &[])));
        put(after(22, &[]));
        cursors.forget(&taken);
        assert_eq!(cursors.waiting(&alice, history), Some(after(22, &[])));
        assert_eq!(cursors.waiting(&alice, crashed), None);
        // After a crash, ids of before may have been assigned again.
        assert_eq!(cursors.take(crashed).len(), 0);
        assert!(cursors.is_empty());
    }

    #[test]
    fn more_cursors_than_may_wait_are_dropped_and_counted() {
        let cursors = Cursors::new(SETTLE, EVERY);
        for number in 0..=WAITING {
            let user = UserId::parse(&number.to_string()).expect("a user");
            cursors.put(&user, History::default(), Position::default());
        }
        assert_eq!(
            (cursors.waiting.lock().len(), cursors.lost.get()),
            (WAITING, 1)
        );
        assert_eq!(cursors.take(History::default()).len(), AT_ONCE);
    }
}
