//! Which transaction ids are durable, that is, flushed to disk.
//!
//! If its writer committed with `synchronous_commit = off`, a row is visible before it is
//! on disk. A crash then loses the row, and its transaction id and row id are assigned
//! again. A reader that has moved past these ids would skip the rows that reuse them. So
//! besides its position, the bridge knows the *durable floor*, below which ids are never
//! reused. After a crash of Postgres, every position falls back to it.

use tokio_postgres::types::PgLsn;

use crate::domain::snapshot::Xid;

/// State of the write-ahead log when a page was read.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Everything that the page could see was written before this position
    /// (`pg_current_wal_insert_lsn()`).
    pub inserted: PgLsn,
    /// Everything before this position is on disk (`pg_current_wal_flush_lsn()`).
    pub flushed: PgLsn,
}

/// The durable floor: transaction ids below it are on disk. It applies to the whole
/// cluster.
#[derive(Debug)]
pub struct DurableFloor {
    xid: Xid,
    /// A floor that was read but isn't durable yet, and the log position that must be
    /// flushed first. One candidate is enough: the next is taken once this one is
    /// durable.
    candidate: Option<(Xid, PgLsn)>,
}

impl DurableFloor {
    /// Starts at the next transaction id of the last checkpoint, which recovery never
    /// goes back behind.
    pub fn new(checkpoint: Xid) -> Self {
        Self {
            xid: checkpoint,
            candidate: None,
        }
    }

    pub fn xid(&self) -> Xid {
        self.xid
    }

    /// Records that a reader has read up to `floor` while the log was in state `log`. The
    /// transaction before `floor` wrote its row before `log.inserted`.
    pub fn read_up_to(&mut self, floor: Xid, log: Log) {
        if let Some((candidate, inserted)) = self.candidate
            && inserted <= log.flushed
        {
            self.xid = self.xid.max(candidate);
            self.candidate = None;
        }
        if log.inserted <= log.flushed {
            self.xid = self.xid.max(floor);
        } else if floor > self.xid {
            self.candidate.get_or_insert((floor, log.inserted));
        }
    }

    /// Call this after a crash of Postgres: what was not on disk at that point never will
    /// be.
    pub fn crashed(&mut self) {
        self.candidate = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(inserted: u64, flushed: u64) -> Log {
        Log {
            inserted: inserted.into(),
            flushed: flushed.into(),
        }
    }

    #[test]
    fn a_floor_is_safe_once_the_log_was_flushed_to_where_it_was_read() {
        let mut safe = DurableFloor::new(Xid(5));
        safe.read_up_to(Xid(9), log(100, 90));
        assert_eq!(safe.xid(), Xid(5));
        // A flush up to the older candidate's log position must not make the younger
        // floor durable.
        safe.read_up_to(Xid(12), log(150, 99));
        assert_eq!(safe.xid(), Xid(5));
        safe.read_up_to(Xid(14), log(160, 100));
        assert_eq!(safe.xid(), Xid(9));
        safe.read_up_to(Xid(14), log(160, 160));
        assert_eq!(safe.xid(), Xid(14));
    }

    #[test]
    fn what_was_not_flushed_before_a_crash_never_becomes_safe() {
        let mut safe = DurableFloor::new(Xid(5));
        safe.read_up_to(Xid(9), log(100, 90));
        safe.crashed();
        safe.read_up_to(Xid(7), log(140, 130));
        assert_eq!(safe.xid(), Xid(5));
        safe.read_up_to(Xid(7), log(140, 140));
        assert_eq!(safe.xid(), Xid(7));
    }
}
