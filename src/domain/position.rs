//! What a reader has seen, represented as a Postgres snapshot.
//!
//! A row gets its id when it is inserted and becomes visible when its transaction
//! commits, so `id > last_seen` skips the rows of a slow transaction. A [`Position`]
//! instead remembers what the reader's snapshot could not see. Every row stores the
//! transaction that wrote it, and a row is *new* if that transaction was still running,
//! or had not started, when the reader read. PgQ has read queues this way for fifteen
//! years.
//!
//! The same type serves the bridge's own tail of the table, a connection's catch-up and
//! live delivery, and the id of every SSE event.

mod event_id;
mod read_step;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::snapshot::{Snapshot, Xid};

pub use self::event_id::{EventId, OPEN_IN_TEXT, TopicScope, UnusableId};
pub use self::read_step::{ReadPoint, ReadStep, StepWorth};

/// A row's place in the order of delivery: by transaction, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowKey {
    /// The transaction that wrote the row.
    pub xid: Xid,
    /// The row's primary key.
    pub id: i64,
}

/// Whether a read left new rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Everything new was read.
    Nothing,
    More,
}

/// Whether more rows of the same transaction follow the row that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// The next row was written by the same transaction.
    SameTransaction,
    /// The next row, if any, was written by another transaction.
    Other,
}

/// Transactions that a run of rows cut off or left behind, although the run contains
/// later rows: their rows above an id are still unread.
///
/// A transaction with more rows than a page is read in pieces, and later transactions
/// don't wait for it. Every reader that moves past one of the later rows keeps the rest
/// of the large transaction open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread(BTreeMap<Xid, i64>);

impl Unread {
    /// The run contains everything new, up to its last row and the end of that row's
    /// transaction.
    pub const NOTHING: Self = Self(BTreeMap::new());

    /// The run was cut off after `row`, and more rows of its transaction follow.
    pub fn after(row: RowKey) -> Self {
        Self(BTreeMap::from([(row.xid, row.id)]))
    }

    /// The run was also cut off after `row`.
    pub fn add(&mut self, row: RowKey) {
        self.0.insert(row.xid, row.id);
    }

    /// The number of transactions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The transactions, in ascending order.
    pub fn xids(&self) -> Vec<Xid> {
        self.0.keys().copied().collect()
    }

    /// For each of [`xids`](Self::xids), the id of the last row that was read.
    pub fn reads(&self) -> Vec<i64> {
        self.0.values().copied().collect()
    }
}

/// What a reader has seen: all rows of transactions below `floor`, except for the
/// transactions in `open`, of which it has seen the rows up to an id.
///
/// The floor is computed from the transactions of rows, never from a snapshot's `xmax`:
/// transaction ids that were assigned and not logged are reused after a crash, and a
/// floor above them would hide the rows that reuse them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    floor: Xid,
    /// Each is below `floor`; the value is the id of the last row read, 0 for none.
    open: BTreeMap<Xid, i64>,
}

impl Position {
    /// The position after everything that `snapshot` sees, up to and including
    /// transaction `top`. Without `top`, there was nothing to see.
    pub fn after(top: Option<Xid>, snapshot: &Snapshot) -> Self {
        let mut position = Self::default();
        position.finish(top, snapshot, &Unread::NOTHING);
        position
    }

    /// The position after everything that `snapshot` sees before `first`, and nothing
    /// from `first` on.
    pub fn before(first: RowKey, snapshot: &Snapshot) -> Self {
        let floor = first.xid.next();
        let mut open = running_below(floor, snapshot);
        open.insert(first.xid, first.id.saturating_sub(1));
        Self { floor, open }
    }

    /// Whether the reader has not seen this row.
    pub fn is_new(&self, row: RowKey) -> bool {
        row.xid >= self.floor || self.open.get(&row.xid).is_some_and(|&read| row.id > read)
    }

    /// Whether the reader had seen the whole transaction `xid`, as far as rows of this
    /// user or topic are concerned: nothing that it wrote is new.
    pub fn is_past(&self, xid: Xid) -> bool {
        xid < self.floor && !self.open.contains_key(&xid)
    }

    /// The transactions that the reader is past, as a snapshot that shows them.
    pub fn as_snapshot(&self) -> Snapshot {
        Snapshot::new(self.floor, self.open_xids())
    }

    /// Moves to after `row`, the next new row in delivery order that `snapshot` sees. The
    /// row belongs to a run that leaves `unread`.
    pub fn advance(&mut self, row: RowKey, snapshot: &Snapshot, follows: Follows, unread: &Unread) {
        let left = self.left_of(unread, row.xid);
        self.floor = self.floor.max(row.xid.next());
        // Transactions above the row's are still unread. Those below have been read to
        // their ends, unless they are still running or were left behind.
        self.open.retain(|&xid, _| xid > row.xid);
        for xid in snapshot.running_below(self.floor) {
            self.open.entry(xid).or_insert(0);
        }
        self.open.extend(left);
        if follows == Follows::SameTransaction || unread.0.contains_key(&row.xid) {
            self.open.insert(row.xid, row.id);
        }
    }

    /// Completes a read: every row that `snapshot` sees has been read, except the rest of
    /// the transactions in `unread`. `top` is the highest transaction of these rows;
    /// without it, none is higher than the rows that [`advance`](Self::advance) has
    /// passed.
    pub fn finish(&mut self, top: Option<Xid>, snapshot: &Snapshot, unread: &Unread) {
        let floor = top.map_or(self.floor, |top| self.floor.max(top.next()));
        let left = self.left_of(unread, floor);
        self.floor = floor;
        self.open = running_below(floor, snapshot);
        self.open.extend(left);
    }

    /// Moves the position from which a page was read past the page's rows of transactions
    /// that were already begun: these have been read to their ends, except those in
    /// `cut`. Returns what the rows leave unread.
    pub fn pass_begun(&mut self, cut: &Unread) -> Unread {
        self.open.retain(|_, read| *read == 0);
        self.open.extend(&cut.0);
        Unread(self.open.clone())
    }

    /// Moves the position from which a page was read past the page's rows of all other
    /// transactions. The begun ones stay unread. Returns what the rows leave unread.
    pub fn pass_others(
        &mut self,
        last: Option<RowKey>,
        cut: &Unread,
        rest: Rest,
        snapshot: &Snapshot,
    ) -> Unread {
        let mut unread = self.begun();
        unread.0.extend(&cut.0);
        // The rows are in order, so moving past the last one moves past all of them.
        if let Some(last) = last {
            self.advance(last, snapshot, Follows::Other, &unread);
        }
        if rest == Rest::Nothing {
            self.finish(None, snapshot, &unread);
        }
        unread
    }

    /// The part of `unread` below `xid` that this reader hasn't seen either. It may have
    /// read further than the reader that left these transactions behind.
    fn left_of(&self, unread: &Unread, xid: Xid) -> BTreeMap<Xid, i64> {
        let below = unread.0.range(..xid);
        let left = below.filter_map(|(&xid, &read)| match self.open.get(&xid) {
            Some(&also) => Some((xid, read.max(also))),
            None if xid >= self.floor => Some((xid, read)),
            None => None,
        });
        left.collect()
    }

    /// Merges what two readers have seen: a row is new to the result only if it is new to
    /// both.
    pub fn join(&mut self, other: &Self) {
        let (high, low) = if self.floor >= other.floor {
            (&*self, other)
        } else {
            (other, &*self)
        };
        let open = high
            .open
            .iter()
            .filter_map(|(&xid, &read)| match low.open.get(&xid) {
                Some(&also) => Some((xid, read.max(also))),
                None if xid >= low.floor => Some((xid, read)),
                None => None,
            })
            .collect();
        *self = Self {
            floor: high.floor,
            open,
        };
    }

    /// Keeps what two readers have both seen: a row is new to the result if it is new to
    /// either.
    pub fn meet(&mut self, other: &Self) {
        let (high, low) = if self.floor >= other.floor {
            (&*self, other)
        } else {
            (other, &*self)
        };
        let mut open = low.open.clone();
        for (&xid, &read) in high.open.range(..low.floor) {
            let read_by_both = open.entry(xid).or_insert(read);
            *read_by_both = read.min(*read_by_both);
        }
        *self = Self {
            floor: low.floor,
            open,
        };
    }

    /// Whether this reader has seen everything that the other one has. May deny it of a
    /// transaction of which the other one has seen no row.
    pub fn covers(&self, other: &Self) -> bool {
        let was_open = |xid: &Xid, read: i64| {
            *xid >= other.floor || other.open.get(xid).is_some_and(|&also| also <= read)
        };
        self.floor >= other.floor && self.open.iter().all(|(xid, &read)| was_open(xid, read))
    }

    /// A position of which only this was stored: everything below `floor` was seen, and
    /// nothing of the transactions in `open`.
    pub fn stored(floor: Xid, open: Vec<Xid>) -> Self {
        let open = open.into_iter().filter(|&xid| xid < floor);
        Self {
            floor,
            open: open.map(|xid| (xid, 0)).collect(),
        }
    }

    /// After a crash of Postgres, transaction ids from `safe` on may have been assigned
    /// again, so none of them counts as seen.
    pub fn fall_to(&mut self, safe: Xid) {
        self.floor = self.floor.min(safe);
        self.open.retain(|&xid, _| xid < safe);
    }

    /// Whether this reader may have missed rows that were removed. `pruned` is their
    /// youngest transaction. No row of a transaction that `snapshot` shows as running has
    /// been removed.
    pub fn may_miss(&self, pruned: Xid, snapshot: &Snapshot) -> bool {
        let has_ended = |xid| {
            snapshot
                .running_below(self.floor)
                .all(|running| running != xid)
        };
        self.floor <= pruned || self.open.range(..=pruned).any(|(&xid, _)| has_ended(xid))
    }

    /// All rows of this transaction and later ones are new.
    pub fn floor(&self) -> Xid {
        self.floor
    }

    /// The transactions below the floor that still have unread rows, in ascending order.
    pub fn open_xids(&self) -> Vec<Xid> {
        self.open.keys().copied().collect()
    }

    /// For each of [`open_xids`](Self::open_xids), the id of the last row that was read.
    pub fn open_reads(&self) -> Vec<i64> {
        self.open.values().copied().collect()
    }

    /// The open transactions of which some rows have been read: they have committed, and
    /// were larger than a page.
    pub fn begun(&self) -> Unread {
        self.open_where(|read| read != 0)
    }

    /// The open transactions of which nothing has been read: they were still running.
    pub fn not_begun(&self) -> Unread {
        self.open_where(|read| read == 0)
    }

    fn open_where(&self, is_wanted: impl Fn(i64) -> bool) -> Unread {
        let open = self.open.iter().filter(|&(_, &read)| is_wanted(read));
        Unread(open.map(|(&xid, &read)| (xid, read)).collect())
    }
}

fn running_below(floor: Xid, snapshot: &Snapshot) -> BTreeMap<Xid, i64> {
    snapshot.running_below(floor).map(|xid| (xid, 0)).collect()
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::{collection::btree_map, option, prelude::*};

    use super::*;

    /// Small numbers, so that positions overlap and rows fall between them.
    pub(super) fn position(open: usize) -> impl Strategy<Value = Position> {
        (0..200u64, btree_map(0..200u64, 0..20i64, 0..=open)).prop_map(|(floor, open)| Position {
            floor: Xid(floor),
            open: open
                .into_iter()
                .filter(|&(xid, _)| xid < floor)
                .map(|(xid, read)| (Xid(xid), read))
                .collect(),
        })
    }

    /// Few transactions, so that most are known to both positions.
    pub(super) fn dense_position() -> impl Strategy<Value = Position> {
        (0..12u64, unread()).prop_map(|(floor, Unread(mut open))| {
            let floor = Xid(floor);
            open.retain(|&xid, _| xid < floor);
            Position { floor, open }
        })
    }

    fn unread() -> impl Strategy<Value = Unread> {
        btree_map((0..12u64).prop_map(Xid), 0..6i64, 0..=9).prop_map(Unread)
    }

    pub(super) fn dense_row() -> impl Strategy<Value = RowKey> {
        (0..13u64, 1..8i64).prop_map(|(xid, id)| RowKey { xid: Xid(xid), id })
    }

    pub(super) fn row() -> impl Strategy<Value = RowKey> {
        (0..210u64, 1..21i64).prop_map(|(xid, id)| RowKey { xid: Xid(xid), id })
    }

    proptest! {
        // Some cases occur in one of a hundred inputs, or fewer.
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn a_join_has_seen_what_either_has_seen(a in position(9), b in position(9), row in row()) {
            let mut joined = a.clone();
            joined.join(&b);
            prop_assert_eq!(joined.is_new(row), a.is_new(row) && b.is_new(row));
            prop_assert!(joined.open.keys().all(|&xid| xid < joined.floor));
        }

        #[test]
        fn a_meeting_has_seen_what_both_have_seen(a in position(9), b in position(9), row in row()) {
            let mut met = a.clone();
            met.meet(&b);
            prop_assert_eq!(met.is_new(row), a.is_new(row) || b.is_new(row));
            prop_assert!(met.open.keys().all(|&xid| xid < met.floor));
            prop_assert!(a.covers(&met) && b.covers(&met));
            let stored = Position::stored(met.floor, met.open_xids());
            prop_assert!(met.covers(&stored) && (stored.is_new(row) || !met.is_new(row)));
        }

        #[test]
        fn a_position_that_covers_another_has_seen_its_rows(
            a in dense_position(), b in dense_position(), row in dense_row()
        ) {
            prop_assert!(!a.covers(&b) || !a.is_new(row) || b.is_new(row));
            let mut joined = a.clone();
            joined.join(&b);
            prop_assert!(a.covers(&a) && joined.covers(&a) && joined.covers(&b));
        }

        #[test]
        fn a_step_sees_what_is_below_it_but_for_what_is_left_unread(
            before in dense_position(), step in dense_row(), row in dense_row(), unread in unread()
        ) {
            if !before.is_new(step) {
                return Ok(());
            }
            let mut after = before.clone();
            after.advance(step, &Snapshot::new(Xid(300), Vec::new()), Follows::Other, &unread);
            let is_left = unread.0.get(&row.xid).is_some_and(|&read| row.id > read);
            let is_new = match row.xid.cmp(&step.xid) {
                Ordering::Less => before.is_new(row) && is_left,
                Ordering::Equal => unread.0.contains_key(&row.xid) && row.id > step.id,
                Ordering::Greater => before.is_new(row),
            };
            prop_assert_eq!(after.is_new(row), is_new);
            prop_assert!(after.open.keys().all(|&xid| xid < after.floor));
        }

        #[test]
        fn an_end_has_seen_all_but_what_is_left_unread(
            before in dense_position(), row in dense_row(), unread in unread(),
            top in option::of(0..13u64)
        ) {
            let top = top.map(Xid);
            let mut after = before.clone();
            after.finish(top, &Snapshot::new(Xid(300), Vec::new()), &unread);
            let is_left = unread.0.get(&row.xid).is_some_and(|&read| row.id > read);
            let is_above = row.xid >= before.floor.max(top.map_or(Xid(0), Xid::next));
            prop_assert_eq!(after.is_new(row), is_above || before.is_new(row) && is_left);
            prop_assert!(after.open.keys().all(|&xid| xid < after.floor));
        }

        #[test]
        fn after_a_fall_nothing_is_seen_that_may_be_handed_out_again(
            position in position(9), row in row(), safe in (0..210u64).prop_map(Xid)
        ) {
            let mut fallen = position.clone();
            fallen.fall_to(safe);
            prop_assert_eq!(fallen.is_new(row), row.xid >= safe || position.is_new(row));
            prop_assert!(fallen.open.keys().all(|&xid| xid < fallen.floor));
        }
    }
}
