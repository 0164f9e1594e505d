//! How far the listener has read which streams are to end; pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    delivery::page_reader::Disconnections,
    domain::{
        position::{Follows, Position, Rest},
        snapshot::Xid,
    },
};

/// How often new ones are looked for: a logout takes effect within seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// They are kept for a day. A bridge that has not read to their end for so long may
/// have missed some.
const MISSED_AFTER: Duration = Duration::from_secs(12 * 60 * 60);

/// How far it has been read which streams are to end.
///
/// They are read like the table's tail, in pages and from a position, so that none
/// is missed that commits late. One page is read between two looks at the table, so
/// that rows are delivered while millions of disconnections are read.
#[derive(Debug)]
pub struct Progress {
    position: Position,
    /// When nothing more was left to read.
    caught_up: Instant,
    /// When to read the next page.
    due: Instant,
}

impl Progress {
    /// Begins at the end of what this page has seen. What came before concerns no
    /// stream that is opened from now on.
    pub fn begins(page: &Disconnections, now: Instant) -> Self {
        Self {
            position: Position::after(page.last.map(|last| last.xid), &page.snapshot),
            caught_up: now,
            due: now + LOOK_EVERY,
        }
    }

    /// Nothing has been read yet.
    pub fn none(now: Instant) -> Self {
        Self {
            position: Position::default(),
            caught_up: now,
            due: now,
        }
    }

    /// After what to read.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Whether to read a page now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// Moves on to after this page. If there is more, it is due at once.
    pub fn read(&mut self, page: &Disconnections, now: Instant) {
        if let Some(last) = page.last {
            let (snapshot, unread) = (&page.snapshot, &page.unread);
            self.position
                .advance(last, snapshot, Follows::Other, unread);
        }
        if page.rest == Rest::Nothing {
            self.position.finish(None, &page.snapshot, &page.unread);
            self.caught_up = now;
            self.due = now + LOOK_EVERY;
        } else {
            self.due = now;
        }
    }

    /// Postgres has crashed: transaction ids from `safe` on may be handed out again,
    /// so their rows are read again. A stream that ends once more comes back.
    pub fn fall_to(&mut self, safe: Xid, now: Instant) {
        self.position.fall_to(safe);
        self.due = now;
    }

    /// Whether rows may have been removed that were never read.
    pub fn may_have_missed(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.caught_up) > MISSED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        clock::Moment,
        durable_floor::Log,
        history::Incarnation,
        position::{RowKey, Unread},
        snapshot::Snapshot,
    };

    fn key(xid: u64, id: i64) -> RowKey {
        RowKey { xid: Xid(xid), id }
    }

    /// One that is all there is, or is cut off in the middle of a transaction.
    fn page(last: Option<RowKey>, snapshot: Snapshot, rest: Rest) -> Disconnections {
        let cut_off = last.filter(|_| rest == Rest::More);
        Disconnections {
            incarnation: Incarnation::default(),
            snapshot,
            log: Log {
                inserted: 1.into(),
                flushed: 1.into(),
            },
            clock: Moment::default(),
            last,
            found: Vec::new(),
            rest,
            unread: cut_off.map_or(Unread::NOTHING, Unread::after),
        }
    }

    fn sees_below(xmax: u64, running: &[u64]) -> Snapshot {
        Snapshot::new(Xid(xmax), running.iter().copied().map(Xid).collect())
    }

    #[test]
    fn a_transaction_is_read_in_pages_at_once_and_what_is_new_a_second_later() {
        let now = Instant::now();
        let start = page(Some(key(5, 1)), sees_below(6, &[]), Rest::Nothing);
        let mut progress = Progress::begins(&start, now);
        assert!(!progress.is_due(now) && progress.is_due(now + LOOK_EVERY));
        assert!(!progress.position().is_new(key(5, 2)));

        let seen = sees_below(9, &[]);
        let cut = page(Some(key(8, 20)), seen.clone(), Rest::More);
        progress.read(&cut, now);
        assert!(progress.is_due(now));
        let new = [key(8, 20), key(8, 21), key(9, 1)].map(|row| progress.position().is_new(row));
        assert_eq!(new, [false, true, true]);

        progress.read(&page(Some(key(8, 30)), seen, Rest::Nothing), now);
        assert!(!progress.is_due(now));
        assert!(!progress.position().is_new(key(8, 31)));
    }

    #[test]
    fn what_commits_late_is_new_and_so_is_what_a_crash_hands_out_again() {
        let now = Instant::now();
        let start = page(Some(key(8, 1)), sees_below(9, &[7]), Rest::Nothing);
        let mut progress = Progress::begins(&start, now);
        assert!(progress.position().is_new(key(7, 1)));
        progress.fall_to(Xid(8), now);
        assert!(progress.is_due(now));
        assert!(progress.position().is_new(key(8, 1)));
        assert!(!progress.position().is_new(key(6, 1)));
    }

    #[test]
    fn only_reading_to_the_end_proves_that_none_was_missed() {
        let now = Instant::now();
        let mut progress = Progress::none(now);
        let late = now + MISSED_AFTER + LOOK_EVERY;
        let more = page(Some(key(5, 1)), sees_below(9, &[]), Rest::More);
        progress.read(&more, late);
        assert!(progress.may_have_missed(late));
        progress.read(&page(None, sees_below(9, &[]), Rest::Nothing), late);
        assert!(!progress.may_have_missed(late));
    }
}
