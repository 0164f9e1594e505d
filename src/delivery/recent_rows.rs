//! The users' rows of the last minute, which streams that return get without a query.
//!
//! Each bridge sees every row anyway. If a client's position covers the position at which
//! these rows begin, and is covered by the one at which they end, the rows that are new to
//! it are the page that the database would return as of the bridge's tail. So a deployment of the application's proxies, or a network that
//! was gone for seconds, costs Postgres nothing, however many clients come back.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    delivery::batch::{Batch, End, Event},
    domain::{
        history::History,
        notification::{Addressee, UserId},
        position::Position,
    },
};

/// How long rows are kept. A client that was away for longer has usually missed more, and
/// reads pages.
const KEPT: Duration = Duration::from_secs(60);

/// The maximum bytes of text in a page of these rows. A client that doesn't read holds them
/// after they were dropped here.
const PAGE_BYTES: usize = 64 << 10;

/// Bytes that a row takes here besides its event and its text: its places in the user's
/// list, in the map and in the reading.
const PLACES: usize = 160;

#[derive(Debug)]
pub struct RecentRows {
    most_bytes: usize,
    state: Mutex<RecentState>,
}

#[derive(Debug, Default)]
struct RecentState {
    /// `None` until the tail has read everything.
    history: Option<History>,
    /// All rows that a reader at `ends` has seen, and one at `begins` has not, are here.
    begins: Arc<Position>,
    ends: Arc<Position>,
    /// In the order in which they were read.
    rows: HashMap<UserId, VecDeque<Arc<Event>>>,
    readings: VecDeque<RecentReading>,
    size: RecentSize,
}

/// The rows of one reading of the tail.
#[derive(Debug)]
struct RecentReading {
    at: Instant,
    /// The tail after them.
    ends: Arc<Position>,
    /// Whose rows they are, in the order in which they were read.
    users: Vec<UserId>,
    bytes: usize,
}

/// Figures about the rows that are kept, named in JSON as on the operator's page.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RecentSize {
    #[serde(rename = "recent_rows")]
    pub rows: usize,
    #[serde(rename = "recent_bytes")]
    pub bytes: usize,
}

impl RecentRows {
    /// Keeps rows that take up to `most_bytes` of memory. With 0, it keeps none.
    pub fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            state: Mutex::default(),
        }
    }

    /// Forgets everything, and keeps nothing until [`begin`](Self::begin).
    ///
    /// After a crash, the tail reads rows again that it has published before. They are not
    /// published again, so they would be missing here.
    pub fn stop(&self) {
        *self.state.lock() = RecentState::default();
    }

    /// If nothing is kept yet: the rows that are new to this tail, which has read
    /// everything, are the first ones.
    pub fn begin(&self, history: History, tail: &Arc<Position>) {
        let mut state = self.state.lock();
        if state.history.is_some() {
            return;
        }
        *state = RecentState {
            history: Some(history),
            begins: Arc::clone(tail),
            ends: Arc::clone(tail),
            ..RecentState::default()
        };
    }

    /// Adds what one statement has read, and with which the tail came here.
    pub fn add(&self, rows: &[(Addressee, Arc<Event>)], tail: &Arc<Position>) {
        if self.most_bytes == 0 {
            return;
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.history.is_none() {
            return;
        }
        state.add(rows, tail, now);
        while state.size.bytes > self.most_bytes
            || state
                .readings
                .front()
                .is_some_and(|reading| now.saturating_duration_since(reading.at) > KEPT)
        {
            state.drop_oldest();
        }
    }

    /// Whether all rows that are new to this position, up to the tail, are here.
    pub fn reaches(&self, history: History, position: &Position) -> bool {
        let state = self.state.lock();
        self.most_bytes > 0 && state.history == Some(history) && position.covers(&state.begins)
    }

    /// The user's rows up to the tail that are new to this position. `None` if there may be
    /// others, or if they are too many: then the database has to be asked.
    pub fn page(&self, user: &UserId, history: History, position: &Position) -> Option<Batch> {
        if self.most_bytes == 0 {
            return None;
        }
        let state = self.state.lock();
        if state.history != Some(history)
            || !position.covers(&state.begins)
            // The client may come from a bridge that has read further, or have read part of a
            // page. What is running at the end of these rows it may have seen then.
            || !state.ends.covers(position)
        {
            return None;
        }
        let rows = state.rows.get(user).into_iter().flatten();
        let new = rows.filter(|event| position.is_new(event.notification().key));
        let mut events: Vec<_> = new.cloned().collect();
        let ends = Arc::clone(&state.ends);
        drop(state);
        events.sort_unstable_by_key(|event| event.notification().key);
        let page = Batch {
            events,
            snapshot: Arc::new(ends.as_snapshot()),
            unread: Arc::new(ends.begun()),
            last: None,
            end: End::Recent(ends),
        };
        (page.bytes() <= PAGE_BYTES).then_some(page)
    }

    pub fn size(&self) -> RecentSize {
        self.state.lock().size
    }
}

impl RecentState {
    fn add(&mut self, rows: &[(Addressee, Arc<Event>)], ends: &Arc<Position>, now: Instant) {
        let (mut users, mut bytes) = (Vec::new(), 0);
        for (addressee, event) in rows {
            if let Addressee::User(user) = addressee {
                users.push(user.clone());
                bytes += event.memory() + PLACES;
                let kept = self.rows.entry(user.clone()).or_default();
                kept.push_back(Arc::clone(event));
            }
        }
        self.ends = Arc::clone(ends);
        if !users.is_empty() {
            users.shrink_to_fit();
            self.size.rows += users.len();
            self.size.bytes += bytes;
            self.readings.push_back(RecentReading {
                at: now,
                ends: Arc::clone(ends),
                users,
                bytes,
            });
        }
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.readings.pop_front() else {
            return;
        };
        self.size.rows -= oldest.users.len();
        self.size.bytes -= oldest.bytes;
        self.begins = oldest.ends;
        for user in oldest.users {
            if let hash_map::Entry::Occupied(mut rows) = self.rows.entry(user) {
                rows.get_mut().pop_front();
                if rows.get().is_empty() {
                    rows.remove();
                }
            }
        }
        if self.readings.is_empty() {
            // No memory of a past burst.
            (self.rows, self.readings) = (HashMap::new(), VecDeque::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::domain::{
        notification::{Expiry, Notification},
        position::RowKey,
        snapshot::{Snapshot, Xid},
    };

    fn user(name: &str) -> UserId {
        UserId::parse(name).expect("a user")
    }

    /// The position after the transactions up to this one.
    fn after(xid: u64) -> Position {
        Position::after(Some(Xid(xid)), &Snapshot::new(Xid(xid + 1), Vec::new()))
    }

    fn tail(xid: u64) -> Arc<Position> {
        Arc::new(after(xid))
    }

    /// Each row is a transaction of its own, with the row's id as its xid.
    fn row(of: &str, id: u64, bytes: usize) -> (Addressee, Arc<Event>) {
        let event = Event::from(Notification {
            key: RowKey {
                xid: Xid(id),
                id: id.cast_signed(),
            },
            event: None,
            text: "x".repeat(bytes),
            created_at: None,
            expires: Expiry::Never,
            reference: None,
            topic: None,
        });
        (Addressee::User(user(of)), Arc::new(event))
    }

    fn ids(rows: &RecentRows, of: &str, position: &Position) -> Option<Vec<i64>> {
        let page = rows.page(&user(of), History::default(), position)?;
        let ids = page.events.iter().map(|event| event.notification().key.id);
        Some(ids.collect())
    }

    #[test]
    fn a_page_has_the_users_rows_that_are_new_and_none_if_any_may_be_missing() {
        let rows = RecentRows::new(1 << 20);
        rows.begin(History::default(), &tail(10));
        rows.add(&[row("alice", 11, 1), row("bob", 12, 1)], &tail(12));
        rows.add(&[row("alice", 13, 1)], &tail(13));
        assert_eq!(ids(&rows, "alice", &after(10)), Some(vec![11, 13]));
        assert_eq!(ids(&rows, "alice", &after(11)), Some(vec![13]));
        assert_eq!(ids(&rows, "carol", &after(10)), Some(vec![]));
        assert_eq!(ids(&rows, "alice", &after(9)), None);
        // From a bridge that has read further.
        assert_eq!(ids(&rows, "alice", &after(14)), None);
        let other = History {
            system_identifier: 7,
            ..History::default()
        };
        assert!(rows.page(&user("alice"), other, &after(13)).is_none());
        // After a crash, the tail reads 12 again, and doesn't publish it again.
        rows.stop();
        rows.add(&[], &tail(12));
        assert_eq!(ids(&rows, "alice", &after(11)), None);
        assert_eq!(ids(&rows, "alice", &after(12)), None);
        rows.begin(History::default(), &tail(12));
        rows.begin(History::default(), &tail(0));
        assert_eq!(ids(&rows, "alice", &after(11)), None);
        assert_eq!(ids(&rows, "alice", &after(12)), Some(vec![]));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_rows_go_first() {
        let most = 64 << 10;
        let rows = RecentRows::new(most);
        rows.begin(History::default(), &tail(0));
        for id in 1..=1_000 {
            rows.add(&[row("alice", id, 100)], &tail(id));
            assert!(rows.size().bytes <= most);
        }
        let kept = rows.size().rows as u64;
        assert!((20..1_000).contains(&kept), "{kept}");
        assert_eq!(ids(&rows, "bob", &after(1_000 - kept - 1)), None);
        let page = ids(&rows, "alice", &after(1_000 - kept)).expect("a page");
        assert_eq!(page.len() as u64, kept);
        // One that is larger than all that may be kept.
        rows.add(&[row("alice", 1_001, most)], &tail(1_001));
        assert_eq!((rows.size().rows, rows.size().bytes), (0, 0));
        assert_eq!(ids(&rows, "alice", &after(1_000)), None);
        assert_eq!(ids(&rows, "alice", &after(1_001)), Some(vec![]));
    }

    #[test]
    fn a_page_is_no_larger_than_a_client_that_does_not_read_may_hold() {
        let rows = RecentRows::new(1 << 20);
        rows.begin(History::default(), &tail(0));
        rows.add(&[row("alice", 1, PAGE_BYTES)], &tail(1));
        assert_eq!(ids(&rows, "alice", &after(0)), Some(vec![1]));
        rows.add(&[row("alice", 2, 1)], &tail(2));
        assert_eq!(ids(&rows, "alice", &after(0)), None);
        assert_eq!(ids(&rows, "alice", &after(1)), Some(vec![2]));
    }

    #[tokio::test(start_paused = true)]
    async fn rows_are_kept_for_a_minute() {
        let rows = RecentRows::new(1 << 20);
        rows.begin(History::default(), &tail(0));
        rows.add(&[row("alice", 1, 1)], &tail(1));
        advance(KEPT).await;
        rows.add(&[row("alice", 2, 1)], &tail(2));
        assert_eq!(ids(&rows, "alice", &after(0)), Some(vec![1, 2]));
        advance(Duration::from_millis(1)).await;
        // A poll that finds nothing.
        rows.add(&[], &tail(2));
        assert_eq!(ids(&rows, "alice", &after(0)), None);
        assert_eq!(ids(&rows, "alice", &after(1)), Some(vec![2]));
        advance(2 * KEPT).await;
        rows.add(&[], &tail(2));
        assert_eq!(rows.size().rows, 0);
        assert_eq!(ids(&rows, "alice", &after(2)), Some(vec![]));
    }

    #[test]
    fn none_are_kept_if_there_is_no_room() {
        let rows = RecentRows::new(0);
        rows.begin(History::default(), &tail(0));
        rows.add(&[row("alice", 1, 1)], &tail(1));
        assert_eq!(ids(&rows, "alice", &after(1)), None);
    }
}
