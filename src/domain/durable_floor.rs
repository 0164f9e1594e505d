//! How far transaction ids are on disk.
//!
//! A row can be seen before it is on disk, if its writer committed with
//! `synchronous_commit = off`. A crash then forgets the row, and its transaction
//! id and row id are handed out again: to a reader that has moved past them, the
//! rows that bear them now are as good as seen. So the bridge knows, beside its
//! position, the *safe* floor, below which ids are never handed out again, and
//! every position falls to it when Postgres has crashed.

use tokio_postgres::types::PgLsn;

use crate::domain::snapshot::Xid;

/// Where the write-ahead log stood when a page was read.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// All that the page could see lies before this
    /// (`pg_current_wal_insert_lsn()`).
    pub inserted: PgLsn,
    /// What lies before this is on disk (`pg_current_wal_flush_lsn()`).
    pub flushed: PgLsn,
}

/// Transaction ids below it are on disk. It holds for the whole cluster.
#[derive(Debug)]
pub struct SafeFloor {
    xid: Xid,
    /// A floor that has been read up to, and where the log must be flushed to
    /// for it to be safe. One is enough: the next is taken when it has been.
    candidate: Option<(Xid, PgLsn)>,
}

impl SafeFloor {
    /// Begins with the next transaction id of the last checkpoint, which
    /// recovery never goes back behind.
    pub fn new(checkpoint: Xid) -> Self {
        Self {
            xid: checkpoint,
            candidate: None,
        }
    }

    /// The floor.
    pub fn xid(&self) -> Xid {
        self.xid
    }

    /// A reader has read up to `floor`, the log standing so: the transaction
    /// before the floor wrote its row before the log's end.
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

    /// Postgres has crashed: what was not on disk then will never be.
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
        let mut safe = SafeFloor::new(Xid(5));
        safe.read_up_to(Xid(9), log(100, 90));
        assert_eq!(safe.xid(), Xid(5));
        // The younger floor must not pass for the older one's log.
        safe.read_up_to(Xid(12), log(150, 99));
        assert_eq!(safe.xid(), Xid(5));
        safe.read_up_to(Xid(14), log(160, 100));
        assert_eq!(safe.xid(), Xid(9));
        safe.read_up_to(Xid(14), log(160, 160));
        assert_eq!(safe.xid(), Xid(14));
    }

    #[test]
    fn what_was_not_flushed_before_a_crash_never_becomes_safe() {
        let mut safe = SafeFloor::new(Xid(5));
        safe.read_up_to(Xid(9), log(100, 90));
        safe.crashed();
        safe.read_up_to(Xid(7), log(140, 130));
        assert_eq!(safe.xid(), Xid(5));
        safe.read_up_to(Xid(7), log(140, 140));
        assert_eq!(safe.xid(), Xid(7));
    }
}
