//! The id of an SSE event, which a client sends back when it reconnects.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::Position;
use crate::domain::{history::History, snapshot::Xid};

/// How many open transactions an id names. With 64, an id has about 90 bytes. If there
/// are more, the text has a lower floor: rows may be repeated after a reconnect, none is
/// lost.
pub const OPEN_IN_TEXT: usize = 64;

/// The first number of the encoded position. A new layout gets a new number, so that ids
/// that browsers kept across an upgrade are recognized.
const LAYOUT: u64 = 2;

/// The same layout, in the ids of streams that were narrowed.
const LAYOUT_NARROWED: u64 = 3;

/// The id of an SSE event: the row, and the position after exactly that row.
///
/// Its text is `<row id>-<position>`, opaque except for the leading row id:
/// `parseInt(event.lastEventId)` is the row's id, or 0 for none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventId<'a> {
    /// The row's primary key, or 0.
    pub row: i64,
    /// The history that the position belongs to.
    pub history: History,
    /// What the connection has been sent.
    pub position: Cow<'a, Position>,
    /// The durable floor: transaction ids below it are on disk, so no crash causes them
    /// to be assigned again.
    pub safe: Xid,
    pub scope: TopicScope,
}

/// Whose rows of topics precede the position of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicScope {
    /// Those of all topics that the user has.
    Whole,
    /// The client asked for some topics only, on this connection or on an earlier one that
    /// it continues: rows of others were passed over.
    Narrowed,
}

/// Why a connection can't resume from an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableId {
    /// No bridge issued this id.
    #[error("malformed")]
    Malformed,
    /// The id belongs to another history of the database.
    #[error("epoch")]
    Epoch,
}

impl EventId<'_> {
    /// Parses an id that a client sent. If Postgres has crashed since, the position falls
    /// back to the durable floor in the id.
    ///
    /// # Errors
    ///
    /// [`UnusableId`] if a connection can't resume from it in this `history`.
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
        let (position, safe, scope) = Position::read(&bytes, history)?;
        Ok(EventId {
            row,
            history,
            position: Cow::Owned(position),
            safe,
            scope,
        })
    }
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(16);
        self.position
            .write(self.history, self.safe, self.scope, &mut bytes);
        write!(
            f,
            "{}-{}",
            self.row,
            base64::display::Base64Display::new(&bytes, &URL_SAFE_NO_PAD)
        )
    }
}

/// Appends `value` as LEB128: base 128, least significant group first.
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
        // Only the shortest encoding is accepted, so that each position has exactly one
        // text.
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

impl Position {
    /// This position with at most [`OPEN_IN_TEXT`] open transactions: the oldest are
    /// kept, and the next one becomes the floor.
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

    fn write(&self, history: History, safe: Xid, scope: TopicScope, bytes: &mut Vec<u8>) {
        let (floor, open) = self.for_text();
        let behind = floor.0.saturating_sub(safe.0);
        let layout = match scope {
            TopicScope::Whole => LAYOUT,
            TopicScope::Narrowed => LAYOUT_NARROWED,
        };
        push_varint(bytes, layout);
        push_varint(bytes, history.epoch().0.into());
        push_varint(bytes, floor.0);
        push_varint(bytes, behind);
        if behind > 0 {
            push_varint(bytes, history.incarnation.since.short().into());
        }
        // From the floor downwards, each as the distance to the previous one. Running
        // transactions are the youngest, so distances are small.
        let mut above = floor;
        for (xid, read) in open.rev() {
            push_varint(bytes, (above.0 - xid.0) << 1 | u64::from(read > 0));
            if read > 0 {
                push_varint(bytes, read.unsigned_abs());
            }
            above = xid;
        }
    }

    /// Returns the position, the durable floor and the scope.
    fn read(mut bytes: &[u8], expected: History) -> Result<(Self, Xid, TopicScope), UnusableId> {
        let bytes = &mut bytes;
        let scope = match take_varint(bytes)? {
            LAYOUT => TopicScope::Whole,
            LAYOUT_NARROWED => TopicScope::Narrowed,
            _ => return Err(UnusableId::Malformed),
        };
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
        Ok((position, Xid(safe), scope))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{position, row},
        *,
    };
    use crate::domain::history::{Incarnation, Since};

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

    fn written(position: &Position, row: i64, safe: Xid) -> String {
        EventId {
            row,
            history: HISTORY,
            position: Cow::Borrowed(position),
            safe,
            scope: TopicScope::Whole,
        }
        .to_string()
    }

    proptest! {
        #[test]
        fn parsing_undoes_printing(
            position in position(OPEN_IN_TEXT), row in 0..i64::MAX, behind in 0..200u64,
            scope in prop::sample::select(vec![TopicScope::Whole, TopicScope::Narrowed])
        ) {
            let safe = Xid(position.floor.0.saturating_sub(behind));
            let position = Cow::Owned(position);
            let id = EventId { row, history: HISTORY, position, safe, scope };
            prop_assert_eq!(EventId::parse(&id.to_string(), HISTORY), Ok(id));
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
            layout in LAYOUT..=LAYOUT_NARROWED, floor in any::<u64>(), behind in 0..3u64,
            junk in prop::collection::vec(any::<u8>(), 0..24), row in any::<i64>()
        ) {
            // Most of these are rejected; any that parses must have no other text.
            let mut bytes = Vec::new();
            for number in [layout, HISTORY.epoch().0.into(), floor, behind] {
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
