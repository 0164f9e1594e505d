//! Transaction ids and snapshots, as Postgres sends them.
//!
//! See
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>.

use std::{error::Error, fmt};

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// A transaction id that never wraps around (`xid8`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Xid(pub u64);

impl Xid {
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl<'a> FromSql<'a> for Xid {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        i64::from_sql(ty, raw).map(|id| Self(id.cast_unsigned()))
    }

    accepts!(XID8);
}

impl ToSql for Xid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_u64(self.0);
        Ok(IsNull::No)
    }

    accepts!(XID8);
    to_sql_checked!();
}

/// Which transactions are visible to a statement (`pg_snapshot`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    xmax: Xid,
    /// In ascending order, each below `xmax`.
    running: Vec<Xid>,
}

impl Snapshot {
    /// A snapshot that sees all finished transactions below `xmax` except those in
    /// `running`.
    pub fn new(xmax: Xid, mut running: Vec<Xid>) -> Self {
        running.retain(|&xid| xid < xmax);
        running.sort_unstable();
        Self { xmax, running }
    }

    /// No transaction from here on is shown.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }

    /// The transactions that were running, in ascending order.
    pub fn running_xids(&self) -> Vec<Xid> {
        self.running.clone()
    }

    /// The number of running transactions, in all databases of the cluster.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The snapshot's `xmin`: all transactions below it have ended, and what they
    /// committed is visible.
    pub fn xmin(&self) -> Xid {
        self.running.first().copied().unwrap_or(self.xmax)
    }

    /// Whether what transaction `xid` wrote is visible, given that it has committed.
    pub fn shows(&self, xid: Xid) -> bool {
        xid < self.xmax && self.running.binary_search(&xid).is_err()
    }

    /// Whether it shows everything that the other one shows.
    pub fn covers(&self, other: &Self) -> bool {
        let mut running = self.running_below(other.xmax);
        other.xmax <= self.xmax && running.all(|xid| !other.shows(xid))
    }

    /// After a crash of Postgres, transaction ids from `safe` on may have been assigned
    /// again, so none of them is shown.
    pub fn fall_to(&mut self, safe: Xid) {
        self.xmax = self.xmax.min(safe);
        self.running.retain(|&xid| xid < safe);
    }

    /// The transactions below `floor` that were still running, in ascending order.
    pub fn running_below(&self, floor: Xid) -> impl Iterator<Item = Xid> + '_ {
        self.running
            .iter()
            .copied()
            .take_while(move |&xid| xid < floor)
    }
}

/// Postgres' text form: `xmin:xmax:running,running`.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin().0, self.xmax.0)?;
        for (index, xid) in self.running.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{}", xid.0)?;
        }
        Ok(())
    }
}

impl<'a> FromSql<'a> for Snapshot {
    /// The binary form is a count, xmin, xmax, and the running transactions
    /// (`pg_snapshot_send` in Postgres' `xid8funcs.c`).
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let (count, rest) = raw
            .split_first_chunk::<4>()
            .ok_or("a snapshot without its count")?;
        let (words, []) = rest.as_chunks::<8>() else {
            return Err("a snapshot that is cut short".into());
        };
        let [_xmin, xmax, running @ ..] = words else {
            return Err("a snapshot without its bounds".into());
        };
        if u32::from_be_bytes(*count) as usize != running.len() {
            return Err("a snapshot whose count is wrong".into());
        }
        let xid = |word: &[u8; 8]| Xid(u64::from_be_bytes(*word));
        Ok(Self::new(xid(xmax), running.iter().map(xid).collect()))
    }

    accepts!(PG_SNAPSHOT);
}

impl ToSql for Snapshot {
    /// The binary form that `pg_snapshot_recv` reads, which rejects zero. No row has the
    /// first transaction id.
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_u32(u32::try_from(self.running.len())?);
        out.put_u64(self.xmin().0.max(1));
        out.put_u64(self.xmax.0.max(1));
        for xid in &self.running {
            out.put_u64(xid.0);
        }
        Ok(IsNull::No)
    }

    accepts!(PG_SNAPSHOT);
    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_had_ended() {
        let snapshot = Snapshot::new(Xid(9), vec![Xid(7), Xid(5), Xid(9)]);
        let shown = [4, 5, 6, 7, 8, 9].map(|xid| snapshot.shows(Xid(xid)));
        assert_eq!(shown, [true, false, true, false, true, false]);
    }

    #[test]
    fn a_later_snapshot_covers_an_earlier_one() {
        let snapshot = |xmax, running: &[u64]| {
            Snapshot::new(Xid(xmax), running.iter().copied().map(Xid).collect())
        };
        let earlier = snapshot(9, &[5, 7]);
        for (other, covers) in [
            (snapshot(9, &[5, 7]), true),
            (snapshot(9, &[7]), true),
            (snapshot(12, &[5, 9, 10]), true),
            // 8 is shown by the earlier one.
            (snapshot(12, &[8]), false),
            (snapshot(8, &[5, 7]), false),
        ] {
            assert_eq!(other.covers(&earlier), covers, "{other}");
            assert!(earlier.covers(&Snapshot::default()));
        }
    }

    #[test]
    fn a_snapshot_is_sent_as_it_is_read() {
        for running in [vec![], vec![Xid(5), Xid(7)]] {
            let snapshot = Snapshot::new(Xid(9), running);
            let mut out = BytesMut::new();
            let sent = snapshot.to_sql(&Type::PG_SNAPSHOT, &mut out);
            assert!(sent.is_ok());
            let read = Snapshot::from_sql(&Type::PG_SNAPSHOT, &out).expect("a snapshot");
            assert_eq!(read, snapshot);
        }
    }
}
