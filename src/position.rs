//! What a reader has seen, as a Postgres snapshot.
//!
//! A row takes its id when it is inserted and becomes visible when its
//! transaction commits, so `id > last_seen` skips the rows of a slow
//! transaction. A [`Position`] remembers instead what the reader's snapshot
//! could not see: every row stores the transaction that wrote it, and a row is
//! *new* if that transaction was still running, or unknown, when the reader
//! looked. PgQ has read queues this way for fifteen years.
//!
//! One type serves the bridge's own tail of the table, a connection's catch-up
//! and live delivery, and the id of every SSE event.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    history::History,
    snapshot::{Snapshot, Xid},
};

/// How many unfinished transactions an id names. With 64 an id takes about 90
/// bytes; with more, the reader's floor is lowered in the text (rows may repeat
/// across a break, none is lost).
pub const OPEN_IN_TEXT: usize = 64;

/// First byte of the text form. Another layout gets another number, so that ids
/// that browsers hold across an upgrade are recognised.
const LAYOUT: u64 = 2;

/// Where a row stands in the order of delivery: by transaction, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The transaction that wrote the row.
    pub xid: Xid,
    /// The row's primary key.
    pub id: i64,
}

/// Whether more rows of the same transaction follow the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// The next row was written by the same transaction.
    SameTransaction,
    /// The next row, if any, was written by another transaction.
    Other,
}

/// What a reader has seen: all rows of transactions below `floor`, except those
/// of the transactions in `open`, of which it has seen the rows up to an id.
///
/// The floor is made of the transactions of rows, never of a snapshot's `xmax`:
/// transaction ids that were handed out and not logged are used again after a
/// crash, and a floor above them would hide the rows that reuse them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    floor: Xid,
    /// Each is below `floor`; the value is the last row id read of it, 0 = none.
    open: BTreeMap<Xid, i64>,
}

impl Position {
    /// Everything that `snapshot` sees up to and including transaction `top`
    /// has been seen. Without `top` there was nothing to see.
    pub fn after(top: Option<Xid>, snapshot: &Snapshot) -> Self {
        let mut position = Self::default();
        position.finish(top, snapshot);
        position
    }

    /// Everything that `snapshot` sees before `first` has been seen, and
    /// nothing from `first` on.
    pub fn before(first: RowKey, snapshot: &Snapshot) -> Self {
        let floor = first.xid.next();
        let mut open = running_below(floor, snapshot);
        open.insert(first.xid, first.id.saturating_sub(1));
        Self { floor, open }
    }

    /// Whether the row has not been seen.
    pub fn is_new(&self, row: RowKey) -> bool {
        row.xid >= self.floor || self.open.get(&row.xid).is_some_and(|&read| row.id > read)
    }

    /// Moves on to after `row`, the next new row in the order of delivery that
    /// `snapshot` sees.
    pub fn advance(&mut self, row: RowKey, snapshot: &Snapshot, follows: Follows) {
        self.floor = self.floor.max(row.xid.next());
        // What lies above the row is still to be read of; what lies below has
        // been read to its end, unless it is still running.
        self.open.retain(|&xid, _| xid > row.xid);
        for xid in snapshot.running_below(self.floor) {
            self.open.entry(xid).or_insert(0);
        }
        if follows == Follows::SameTransaction {
            self.open.insert(row.xid, row.id);
        }
    }

    /// Ends a reading: every row that `snapshot` sees has been read, the
    /// highest of them of transaction `top` (none that is higher than what was
    /// read row by row, if it is left out).
    pub fn finish(&mut self, top: Option<Xid>, snapshot: &Snapshot) {
        if let Some(top) = top {
            self.floor = self.floor.max(top.next());
        }
        self.open = running_below(self.floor, snapshot);
    }

    /// Joins what two readers have seen: a row is new to the result if it is
    /// new to both.
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

    /// After a crash of Postgres: transaction ids from `safe` on may have been
    /// handed out again, so nothing of them counts as seen.
    pub fn fall_to(&mut self, safe: Xid) {
        self.floor = self.floor.min(safe);
        self.open.retain(|&xid, _| xid < safe);
    }

    /// Whether new rows may be among those that were removed, the youngest of
    /// which were of transaction `pruned`. What `snapshot` says to be running
    /// still has lost no row.
    pub fn may_miss(&self, pruned: Xid, snapshot: &Snapshot) -> bool {
        let has_ended = |xid| {
            snapshot
                .running_below(self.floor)
                .all(|running| running != xid)
        };
        self.floor <= pruned || self.open.range(..=pruned).any(|(&xid, _)| has_ended(xid))
    }

    /// Rows of this transaction and later ones are all new.
    pub fn floor(&self) -> Xid {
        self.floor
    }

    /// The transactions below the floor of which rows are still to come, in
    /// ascending order.
    pub fn open_xids(&self) -> Vec<Xid> {
        self.open.keys().copied().collect()
    }

    /// For each of [`open_xids`](Self::open_xids), the last row id read of it.
    pub fn open_reads(&self) -> Vec<i64> {
        self.open.values().copied().collect()
    }

    /// The same position with at most [`OPEN_IN_TEXT`] open transactions: the
    /// oldest stay, and the next one becomes the floor.
    fn for_text(&self) -> (Xid, impl DoubleEndedIterator<Item = (Xid, i64)>) {
        let floor = self
            .open
            .keys()
            .nth(OPEN_IN_TEXT)
            .copied()
            .unwrap_or(self.floor);
        (
            floor,
            self.open.range(..floor).map(|(&xid, &read)| (xid, read)),
        )
    }

    fn write(&self, history: History, safe: Xid, bytes: &mut Vec<u8>) {
        let (floor, open) = self.for_text();
        let behind = floor.0.saturating_sub(safe.0);
        push_varint(bytes, LAYOUT);
        push_varint(bytes, history.epoch().0.into());
        push_varint(bytes, floor.0);
        push_varint(bytes, behind);
        if behind > 0 {
            push_varint(bytes, history.incarnation.since.short().into());
        }
        // From the floor downwards, each by its distance to the one before: the
        // running transactions are the youngest, so distances are short.
        let mut above = floor;
        for (xid, read) in open.rev() {
            push_varint(bytes, (above.0 - xid.0) << 1 | u64::from(read > 0));
            if read > 0 {
                push_varint(bytes, read.unsigned_abs());
            }
            above = xid;
        }
    }

    /// Also the safe floor.
    fn read(mut bytes: &[u8], expected: History) -> Result<(Self, Xid), UnusableId> {
        let bytes = &mut bytes;
        if take_varint(bytes)? != LAYOUT {
            return Err(UnusableId::Malformed);
        }
        let epoch = take_varint(bytes)?;
        let floor = Xid(take_varint(bytes)?);
        if floor.0 > i64::MAX.unsigned_abs() {
            return Err(UnusableId::Malformed);
        }
        let behind = take_varint(bytes)?;
        let safe = floor.0.checked_sub(behind).ok_or(UnusableId::Malformed)?;
        let since = if behind > 0 {
            Some(take_varint(bytes)?)
        } else {
            None
        };
        let mut open = BTreeMap::new();
        let mut above = floor.0;
        while !bytes.is_empty() {
            let entry = take_varint(bytes)?;
            let (distance, has_read) = (entry >> 1, entry & 1 == 1);
            let xid = above.checked_sub(distance).ok_or(UnusableId::Malformed)?;
            let read = if has_read { take_varint(bytes)? } else { 0 };
            let read = i64::try_from(read).map_err(|_| UnusableId::Malformed)?;
            if distance == 0 || (has_read && read == 0) || open.len() == OPEN_IN_TEXT {
                return Err(UnusableId::Malformed);
            }
            open.insert(Xid(xid), read);
            above = xid;
        }
        if epoch != u64::from(expected.epoch().0) {
            return Err(UnusableId::Epoch);
        }
        let mut position = Self { floor, open };
        let is_older = |since| since != u64::from(expected.incarnation.since.short());
        if since.is_some_and(is_older) {
            position.fall_to(Xid(safe));
        }
        Ok((position, Xid(safe)))
    }
}

fn running_below(floor: Xid, snapshot: &Snapshot) -> BTreeMap<Xid, i64> {
    snapshot.running_below(floor).map(|xid| (xid, 0)).collect()
}

/// The id of an SSE event: the row, and the position after that very row.
///
/// Its text is `<row id>-<position>`, opaque but for the leading row id:
/// `parseInt(event.lastEventId)` names the row, 0 means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventId<'a> {
    /// The row's primary key, or 0.
    pub row: i64,
    /// The history that the position belongs to.
    pub history: History,
    /// What the connection has been sent.
    pub position: Cow<'a, Position>,
    /// Transaction ids below this one are on disk: no crash hands them out
    /// again.
    pub safe: Xid,
}

/// Why an id can't be resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableId {
    /// It is not an id that a bridge gave out.
    #[error("malformed")]
    Malformed,
    /// It belongs to another history of the database.
    #[error("epoch")]
    Epoch,
}

impl EventId<'_> {
    /// Reads an id that a client sent. If Postgres has crashed since, the
    /// position has fallen to what was safe then.
    ///
    /// # Errors
    ///
    /// [`UnusableId`], if it can't be resumed from in this `history`.
    pub fn parse(text: &str, history: History) -> Result<EventId<'static>, UnusableId> {
        let (row, position) = text.split_once('-').ok_or(UnusableId::Malformed)?;
        let canonical = !row.starts_with('+') && (row == "0" || !row.starts_with('0'));
        let row = row
            .parse()
            .ok()
            .filter(|_| canonical)
            .ok_or(UnusableId::Malformed)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(position)
            .map_err(|_| UnusableId::Malformed)?;
        let (position, safe) = Position::read(&bytes, history)?;
        Ok(EventId {
            row,
            history,
            position: Cow::Owned(position),
            safe,
        })
    }
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(16);
        self.position.write(self.history, self.safe, &mut bytes);
        write!(
            f,
            "{}-{}",
            self.row,
            base64::display::Base64Display::new(&bytes, &URL_SAFE_NO_PAD)
        )
    }
}

/// Appends `value` in base 128, least significant group first (LEB128).
fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, UnusableId> {
    let mut value = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(UnusableId::Malformed)?;
        *bytes = rest;
        let group = u64::from(byte & 0x7f);
        // Only the shortest form is taken, so that a position has one text.
        let overflows =
            shift > 0 && (group == 0 && byte < 0x80 || group << shift >> shift != group);
        if overflows {
            return Err(UnusableId::Malformed);
        }
        value |= group << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(UnusableId::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;
    use crate::history::{Incarnation, Since};

    const HISTORY: History = History {
        system_identifier: 7,
        incarnation: Incarnation {
            timeline: 1,
            since: Since(3),
        },
    };

    fn after_a_crash() -> History {
        let mut history = HISTORY;
        history.incarnation.since = Since(4);
        history
    }

    /// Small numbers, so that positions overlap and rows fall between them.
    fn position(open: usize) -> impl Strategy<Value = Position> {
        (0..200u64, btree_map(0..200u64, 0..20i64, 0..=open)).prop_map(|(floor, open)| Position {
            floor: Xid(floor),
            open: open
                .into_iter()
                .filter(|&(xid, _)| xid < floor)
                .map(|(xid, read)| (Xid(xid), read))
                .collect(),
        })
    }

    fn row() -> impl Strategy<Value = RowKey> {
        (0..210u64, 1..21i64).prop_map(|(xid, id)| RowKey { xid: Xid(xid), id })
    }

    fn written(position: &Position, row: i64, safe: Xid) -> String {
        EventId {
            row,
            history: HISTORY,
            position: Cow::Borrowed(position),
            safe,
        }
        .to_string()
    }

    proptest! {
        #[test]
        fn parsing_undoes_printing(
            position in position(OPEN_IN_TEXT), row in 0..i64::MAX, behind in 0..200u64
        ) {
            let safe = Xid(position.floor.0.saturating_sub(behind));
            let id = EventId::parse(&written(&position, row, safe), HISTORY).expect("an id of ours");
            let position = Cow::Owned(position);
            prop_assert_eq!(id, EventId { row, history: HISTORY, position, safe });
        }

        #[test]
        fn large_numbers_survive(
            floor in 0..i64::MAX.cast_unsigned(), read in 0..i64::MAX, behind in any::<u64>()
        ) {
            let open = if floor > 0 { BTreeMap::from([(Xid(floor - 1), read)]) } else { BTreeMap::new() };
            let position = Position { floor: Xid(floor), open };
            let safe = Xid(floor.saturating_sub(behind));
            let id = EventId::parse(&written(&position, read, safe), HISTORY).expect("an id of ours");
            prop_assert_eq!((id.position.into_owned(), id.safe), (position, safe));
        }

        #[test]
        fn printing_undoes_parsing(
            floor in any::<u64>(), behind in 0..3u64,
            junk in prop::collection::vec(any::<u8>(), 0..24), row in any::<i64>()
        ) {
            // Mostly not understood; what is has no second text.
            let mut bytes = Vec::new();
            for number in [LAYOUT, HISTORY.epoch().0.into(), floor, behind] {
                push_varint(&mut bytes, number);
            }
            if behind > 0 {
                push_varint(&mut bytes, HISTORY.incarnation.since.short().into());
            }
            bytes.extend(junk);
            let text = format!("{row}-{}", URL_SAFE_NO_PAD.encode(&bytes));
            if let Ok(id) = EventId::parse(&text, HISTORY) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn no_text_is_too_strange(text in ".*") {
            let _ = EventId::parse(&text, HISTORY);
        }

        #[test]
        fn a_shortened_text_hides_no_row(position in position(190), row in row()) {
            let id = EventId::parse(&written(&position, 1, Xid(200)), HISTORY).expect("an id of ours");
            prop_assert!(id.position.open.len() <= OPEN_IN_TEXT);
            prop_assert!(!position.is_new(row) || id.position.is_new(row));
        }

        #[test]
        fn after_a_crash_an_id_hides_no_row_that_may_be_another_one(
            position in position(70), row in row(), safe in (0..210u64).prop_map(Xid)
        ) {
            let text = written(&position, 1, safe);
            let id = EventId::parse(&text, after_a_crash()).expect("an id of ours");
            prop_assert!(id.position.is_new(row) || (row.xid < safe && !position.is_new(row)));
            prop_assert!(id.position.open.keys().all(|&xid| xid < id.position.floor));
        }

        #[test]
        fn a_join_has_seen_what_either_has_seen(a in position(9), b in position(9), row in row()) {
            let mut joined = a.clone();
            joined.join(&b);
            prop_assert_eq!(joined.is_new(row), a.is_new(row) && b.is_new(row));
            prop_assert!(joined.open.keys().all(|&xid| xid < joined.floor));
        }
    }

    #[test]
    fn an_id_of_another_history_is_told_from_a_malformed_one() {
        let position = Position {
            floor: Xid(5),
            open: BTreeMap::new(),
        };
        let id = written(&position, 3, Xid(9));
        let mut promoted = HISTORY;
        promoted.incarnation.timeline += 1;
        assert_eq!(EventId::parse(&id, promoted), Err(UnusableId::Epoch));
        let code = id.strip_prefix("3-").expect("the row first");
        for text in [
            "".to_owned(),
            "3".to_owned(),
            "3-".to_owned(),
            format!("-{code}"),
            format!("{id}="),
            format!("x-{code}"),
            format!("+{id}"),
            format!("0{id}"),
            // Another layout.
            "3-AQcF".to_owned(),
            // An open transaction at the floor itself.
            format!("{id}AA"),
        ] {
            assert_eq!(
                EventId::parse(&text, HISTORY),
                Err(UnusableId::Malformed),
                "{text}"
            );
        }
    }
}
