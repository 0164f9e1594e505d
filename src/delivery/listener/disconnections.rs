//! The listener's position in `tidings_disconnections`. Pure, without I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    delivery::page_reader::Disconnections,
    domain::{
        position::{Follows, Position, Rest},
        snapshot::Xid,
    },
};

/// How often new disconnections are read, so that a logout takes effect within seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Disconnections are kept for a day. A bridge that has not read to their end for this
/// long may have missed some.
const MISSED_AFTER: Duration = Duration::from_secs(12 * 60 * 60);

/// How far the disconnections have been read.
///
/// They are read like the table's tail, in pages and from a position, so that none that
/// commits late is missed. One page is read between two polls of the table, so that rows
/// are delivered while millions of disconnections are being read.
#[derive(Debug)]
pub struct Progress {
    position: Position,
    /// When the end was last reached.
    caught_up: Instant,
    due: Instant,
}

impl Progress {
    /// Starts at the end of what this page's snapshot sees. Earlier disconnections
    /// concern no stream that is opened from now on.
    pub fn begins(page: &Disconnections, now: Instant) -> Self {
        Self {
            position: Position::after(page.last.map(|last| last.xid), &page.snapshot),
            caught_up: now,
            due: now + POLL_INTERVAL,
        }
    }

    pub fn none(now: Instant) -> Self {
        Self {
            position: Position::default(),
            caught_up: now,
            due: now,
        }
    }

    pub fn position(&self) -> &Position {
        &self.position
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    /// Moves past this page. If more remain, the next page is due at once.
    pub fn read(&mut self, page: &Disconnections, now: Instant) {
        if let Some(last) = page.last {
            let (snapshot, unread) = (&page.snapshot, &page.unread);
            self.position
                .advance(last, snapshot, Follows::Other, unread);
        }
        if page.rest == Rest::Nothing {
            self.position.finish(None, &page.snapshot, &page.unread);
            self.caught_up = now;
            self.due = now + POLL_INTERVAL;
        } else {
            self.due = now;
        }
    }

    /// Handles a crash of Postgres: transaction ids from `safe` on may be reused, so
    /// their rows are read again. A stream that is ended a second time reconnects.
    pub fn fall_to(&mut self, safe: Xid, now: Instant) {
        self.position.fall_to(safe);
        self.due = now;
    }

    /// Whether rows may have been removed before they were read.
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

    /// A page that ends at `last`: with [`Rest::More`], it is cut off in the middle of
    /// that row's transaction.
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
        assert!(!progress.is_due(now) && progress.is_due(now + POLL_INTERVAL));
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
        let late = now + MISSED_AFTER + POLL_INTERVAL;
        let more = page(Some(key(5, 1)), sees_below(9, &[]), Rest::More);
        progress.read(&more, late);
        assert!(progress.may_have_missed(late));
        progress.read(&page(None, sees_below(9, &[]), Rest::Nothing), late);
        assert!(!progress.may_have_missed(late));
    }
}
