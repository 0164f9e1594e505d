//! Rows that were written to a connection and have not settled. A state machine without
//! I/O.
//!
//! A row settles once its connection has stayed open for `TIDINGS_SETTLE` after the
//! write. A page that is being unloaded receives rows that it never shows, and the next
//! page connects without a last event id: rows that don't settle are delivered to that
//! page.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::recipient::Recipient;

/// How many rows may be in flight, counted once per connection: 8 to 80 MB, depending on
/// how many were written together. Beyond that, the oldest settle early. With the default
/// settle time, it takes half a million rows per second to get there.
const ROWS: usize = 1_000_000;

/// Rows that were written to a connection together.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) at: Instant,
    pub(super) rows: Box<[i64]>,
    pub(super) recipient: Arc<Recipient>,
}

/// The writes of the last `settle`, of all connections, oldest first.
#[derive(Debug)]
pub(super) struct InFlight {
    settle: Duration,
    most: usize,
    writes: VecDeque<Write>,
    /// The number of rows in `writes`.
    rows: usize,
}

impl InFlight {
    pub(super) fn new(settle: Duration) -> Self {
        Self {
            settle,
            most: ROWS,
            writes: VecDeque::new(),
            rows: 0,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows that were written now. Returns the oldest writes if there are too many
    /// rows.
    pub(super) fn add(&mut self, write: Write) -> Vec<Write> {
        self.rows += write.rows.len();
        self.writes.push_back(write);
        let mut early = Vec::new();
        while self.rows > self.most
            && let Some(write) = self.writes.pop_front()
        {
            self.rows -= write.rows.len();
            early.push(write);
        }
        early.retain(|write| write.recipient.stayed());
        early
    }

    /// When the next write settles, if there is any.
    pub(super) fn next(&self) -> Option<Instant> {
        self.writes.front().map(|write| write.at + self.settle)
    }

    /// Takes the writes that have settled by now, at most `limit` of them.
    pub(super) fn take_settled(&mut self, now: Instant, limit: usize) -> Vec<Write> {
        let due = |write: &&Write| write.at + self.settle <= now;
        let count = self.writes.iter().take(limit).take_while(due).count();
        self.take(count)
    }

    /// Takes the writes to streams that the bridge has ended.
    pub(super) fn take_ended(&mut self) -> Vec<Write> {
        let writes = std::mem::take(&mut self.writes).into_iter();
        let (ended, others): (VecDeque<_>, _) =
            writes.partition(|write| write.recipient.is_ended());
        self.writes = others;
        self.rows -= ended.iter().map(|write| write.rows.len()).sum::<usize>();
        ended.into()
    }

    /// Takes all writes: the bridge stops, and no connection outlives it.
    pub(super) fn take_all(&mut self) -> Vec<Write> {
        self.take(self.writes.len())
    }

    /// Takes the oldest writes and drops those whose connections closed too early.
    fn take(&mut self, count: usize) -> Vec<Write> {
        let mut taken: Vec<Write> = self.writes.drain(..count).collect();
        self.rows -= taken.iter().map(|write| write.rows.len()).sum::<usize>();
        taken.retain(|write| write.recipient.stayed());
        if self.writes.is_empty() {
            // An idle bridge keeps no memory of a past burst.
            self.writes = VecDeque::new();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::{super::recipient::Closed, *};
    use crate::domain::history::Incarnation;

    const SETTLE: Duration = Duration::from_secs(2);

    fn recipient() -> Arc<Recipient> {
        Arc::new(Recipient::new(Incarnation::default()))
    }

    /// Writes and a clock.
    struct World {
        in_flight: InFlight,
        now: Instant,
    }

    impl World {
        fn new(settle: Duration) -> Self {
            Self {
                in_flight: InFlight::new(settle),
                now: Instant::now(),
            }
        }

        fn write(&mut self, recipient: &Arc<Recipient>, row: i64) -> Option<i64> {
            let early = self.in_flight.add(Write {
                at: self.now,
                rows: Box::new([row]),
                recipient: Arc::clone(recipient),
            });
            rows(early).first().copied()
        }

        fn settled(&mut self) -> Vec<i64> {
            rows(self.in_flight.take_settled(self.now, usize::MAX))
        }
    }

    fn rows(writes: Vec<Write>) -> Vec<i64> {
        let rows = writes.iter().flat_map(|write| &write.rows);
        rows.copied().collect()
    }

    #[test]
    fn a_row_settles_once_its_connection_has_stayed_open_for_the_settle_time() {
        let mut world = World::new(SETTLE);
        let tab = recipient();
        assert_eq!(world.in_flight.next(), None);
        world.write(&tab, 1);
        world.now += SETTLE / 2;
        world.write(&tab, 2);
        assert_eq!(world.in_flight.next(), Some(world.now + SETTLE / 2));
        assert_eq!(world.settled(), [0_i64; 0]);
        world.now += SETTLE / 2;
        assert_eq!(world.settled(), [1]);
        assert_eq!(world.settled(), [0_i64; 0]);
        // After that, the connection may close.
        world.now += SETTLE;
        tab.close(Closed::ByBridge);
        assert_eq!(world.settled(), [2]);
        assert_eq!((world.in_flight.next(), world.in_flight.rows()), (None, 0));
    }

    #[test]
    fn a_row_of_a_page_that_was_left_never_settles_unless_another_connection_settles_it() {
        let mut world = World::new(SETTLE);
        let (old, new) = (recipient(), recipient());
        world.write(&old, 1);
        world.write(&old, 2);
        world.now += SETTLE / 4;
        old.close(Closed::ByClient);
        world.write(&new, 2);
        world.now += SETTLE;
        assert_eq!(world.settled(), [2]);
        assert_eq!(world.in_flight.rows(), 0);
    }

    #[test]
    fn a_stream_that_the_bridge_ends_settles_its_rows() {
        let mut world = World::new(SETTLE);
        let (ended, left, open) = (recipient(), recipient(), recipient());
        for (row, recipient) in (1..).zip([&ended, &left, &open]) {
            world.write(recipient, row);
        }
        ended.close(Closed::ByBridge);
        left.close(Closed::ByClient);
        assert_eq!(rows(world.in_flight.take_ended()), [1]);
        // When the bridge stops, all others settle too.
        assert_eq!(rows(world.in_flight.take_all()), [3]);
    }

    #[test]
    fn beyond_the_bound_the_oldest_settle_early_and_none_is_dropped() {
        let mut world = World::new(SETTLE);
        world.in_flight.most = 10;
        let tab = recipient();
        for row in 0..10 {
            assert_eq!(world.write(&tab, row), None);
        }
        assert_eq!(world.write(&tab, 10), Some(0));
        // Rows of a page that was left never settle, not even early.
        let left = recipient();
        for row in 11..22 {
            world.write(&left, row);
        }
        left.close(Closed::ByClient);
        assert_eq!(world.write(&tab, 22), None);
        for row in 1..=10 {
            world.write(&tab, row);
        }
        world.now += SETTLE;
        assert_eq!(
            rows(world.in_flight.take_settled(world.now, 4)),
            [1, 2, 3, 4]
        );
        assert_eq!(world.settled(), [5, 6, 7, 8, 9, 10]);
    }
}
