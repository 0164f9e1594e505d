//! Up to where users have received the rows of their topics, for those who connect without
//! a last event id.
//!
//! A cursor is a position of one stream, as of its newest settled write. Losing one causes
//! duplicates, so cursors are collected and written together, and nothing waits for them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    delivery::{hub::Hub, marker::Closed, page_reader::Cursor},
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

    /// Forgets cursors that were written, unless they have moved meanwhile.
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

/// Where the user of a stream continues without a last event id.
#[derive(Debug)]
pub enum StreamCursor {
    /// The client asked for some topics only: the stream passes over rows of others.
    Never,
    /// No row of a topic was written. If a cursor is stored, it is as good as the stream's
    /// position.
    Untouched(Cursor),
    Moving(Box<CursorTrack>),
}

/// Up to where a stream's rows of topics have settled.
#[derive(Debug)]
pub struct CursorTrack {
    /// The newest position whose rows have settled, if any.
    settled: Option<Position>,
    /// A later position, and when it was reached. Two are enough: a cursor that is too old
    /// by less than twice the settle time repeats a little.
    next: Position,
    next_at: Instant,
    /// When the last row of a topic was written.
    written_at: Instant,
    /// When the cursor was last reported.
    put_at: Instant,
}

impl StreamCursor {
    /// Rows of topics were written, which moved the stream to `position`.
    pub fn write(&mut self, position: &Position, settle: Duration) {
        let now = Instant::now();
        match self {
            Self::Never => {}
            Self::Untouched(_) => *self = Self::Moving(Box::new(CursorTrack::begin(position, now))),
            Self::Moving(track) => track.write(position, now, settle),
        }
    }

    /// Handles a crash of Postgres.
    pub fn fall_to(&mut self, safe: Xid) {
        if let Self::Moving(track) = self {
            track.next.fall_to(safe);
            if let Some(settled) = &mut track.settled {
                settled.fall_to(safe);
            }
        }
    }

    /// The cursor to store while the stream is open, if it is time.
    pub fn due(&mut self, position: &Position, cursors: &Cursors) -> Option<Position> {
        let Self::Moving(track) = self else {
            return None;
        };
        let now = Instant::now();
        let is_due = now.saturating_duration_since(track.put_at) >= cursors.every;
        if !is_due || track.written_at < track.put_at {
            return None;
        }
        let settled = track.settled(position, now, cursors.settle).cloned()?;
        track.put_at = now;
        Some(settled)
    }

    /// The cursor to store once the stream has ended. `how` counts for what was written
    /// before the last chunk.
    pub fn last(
        &mut self,
        position: &Position,
        last_chunk: LastChunk,
        how: Closed,
        settle: Duration,
    ) -> Option<Position> {
        let now = Instant::now();
        match (self, last_chunk) {
            (Self::Never | Self::Untouched(Cursor::Stored), _) => None,
            (Self::Untouched(Cursor::Unknown), LastChunk::Written) => Some(position.clone()),
            (Self::Untouched(Cursor::Unknown), LastChunk::HasTopics) => None,
            (Self::Moving(_), LastChunk::Written) if how == Closed::ByBridge => {
                Some(position.clone())
            }
            (Self::Moving(track), LastChunk::Written) => {
                track.settled(position, now, settle).cloned()
            }
            (Self::Moving(track), LastChunk::HasTopics) => {
                track.written_at = now;
                track.settled(position, now, settle).cloned()
            }
        }
    }
}

/// Whether the last chunk of a stream has rows of topics that may not have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastChunk {
    Written,
    HasTopics,
}

impl CursorTrack {
    fn begin(position: &Position, now: Instant) -> Self {
        Self {
            settled: None,
            next: position.clone(),
            next_at: now,
            written_at: now,
            put_at: now,
        }
    }

    fn write(&mut self, position: &Position, now: Instant, settle: Duration) {
        self.written_at = now;
        if now.saturating_duration_since(self.next_at) >= settle {
            let settled = std::mem::replace(&mut self.next, position.clone());
            self.settled = Some(settled);
            self.next_at = now;
        }
    }

    /// The newest settled position of a stream at `position`.
    fn settled<'a>(
        &'a self,
        position: &'a Position,
        now: Instant,
        settle: Duration,
    ) -> Option<&'a Position> {
        let has_settled = |at: Instant| now.saturating_duration_since(at) >= settle;
        if has_settled(self.written_at) {
            Some(position)
        } else if has_settled(self.next_at) {
            Some(&self.next)
        } else {
            self.settled.as_ref()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

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

    fn last(cursor: &mut StreamCursor, position: &Position, how: Closed) -> Option<Position> {
        cursor.last(position, LastChunk::Written, how, SETTLE)
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_is_the_newest_position_whose_rows_have_settled() {
        let mut cursor = StreamCursor::Untouched(Cursor::Stored);
        let mut known = None;
        // A row every second: none but the newest two is in flight, and two positions are kept.
        for xid in 10..20 {
            cursor.write(&after(xid, &[]), SETTLE);
            let left = last(&mut cursor, &after(xid, &[]), Closed::ByClient);
            let floor = |cursor: &Option<Position>| cursor.as_ref().map(Position::floor);
            assert!(floor(&left) >= floor(&known), "{left:?} after {known:?}");
            if let Some(left) = &left {
                assert!(left.floor() <= Xid(xid - 2) && left.floor() >= Xid(xid.saturating_sub(4)));
            }
            known = left;
            advance(SETTLE / 2).await;
        }
        assert!(known.is_some());
        advance(SETTLE).await;
        // Everything has settled, also what was passed over since.
        let now = after(30, &[]);
        assert_eq!(last(&mut cursor, &now, Closed::ByClient), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_bridge_ended_has_settled_and_what_may_not_have_been_written_has_not() {
        let (before, now) = (after(10, &[]), after(20, &[]));
        let mut cursor = StreamCursor::Untouched(Cursor::Unknown);
        cursor.write(&now, SETTLE);
        assert_eq!(last(&mut cursor, &now, Closed::ByClient), None);
        assert_eq!(last(&mut cursor, &now, Closed::ByBridge), Some(now.clone()));
        let mut cursor = StreamCursor::Untouched(Cursor::Unknown);
        cursor.write(&before, SETTLE);
        advance(SETTLE).await;
        let has_topics = LastChunk::HasTopics;
        assert_eq!(
            cursor.last(&now, has_topics, Closed::ByBridge, SETTLE),
            Some(before)
        );
        let mut cursor = StreamCursor::Untouched(Cursor::Unknown);
        assert_eq!(
            cursor.last(&now, has_topics, Closed::ByBridge, SETTLE),
            None
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_written_no_row_of_a_topic_stores_a_cursor_only_if_there_is_none() {
        let now = after(20, &[]);
        for (mut cursor, stores) in [
            (StreamCursor::Untouched(Cursor::Unknown), true),
            (StreamCursor::Untouched(Cursor::Stored), false),
            (StreamCursor::Never, false),
        ] {
            let stored = last(&mut cursor, &now, Closed::ByClient);
            assert_eq!(stored.is_some(), stores, "{cursor:?}");
        }
        // Not even one that was written rows, if it passes over others.
        let mut narrowed = StreamCursor::Never;
        narrowed.write(&now, SETTLE);
        assert_eq!(last(&mut narrowed, &now, Closed::ByBridge), None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_connected_a_cursor_is_stored_now_and_then_and_only_if_it_moved() {
        let cursors = Cursors::new(SETTLE, EVERY);
        let mut cursor = StreamCursor::Untouched(Cursor::Stored);
        let now = after(20, &[]);
        cursor.write(&after(10, &[]), SETTLE);
        assert_eq!(cursor.due(&now, &cursors), None);
        advance(EVERY).await;
        assert_eq!(cursor.due(&now, &cursors), Some(now.clone()));
        advance(EVERY).await;
        assert_eq!(cursor.due(&now, &cursors), None);
        cursor.write(&now, SETTLE);
        // What was written just now has not settled.
        assert_eq!(cursor.due(&after(30, &[]), &cursors), Some(after(10, &[])));
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
