//! Up to where one stream's rows of topics have settled: the cursor that it stores
//! (`cursors.rs`). A state machine without I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    delivery::{marker::Closed, page_reader::Cursor},
    domain::{
        position::{Position, TopicScope},
        snapshot::Xid,
    },
};

/// Where the user of a stream continues without a last event id.
#[derive(Debug)]
pub enum StreamCursor {
    /// The client asked for some topics only, or continues a stream of that kind: rows of
    /// others are passed over.
    Never,
    /// No row of a topic was written. If a cursor is stored, it is as good as the stream's
    /// position.
    Untouched(Cursor),
    Moving(Box<CursorTrack>),
}

/// Up to where a stream's rows of topics have settled.
#[derive(Debug)]
pub struct CursorTrack {
    /// The newest position whose rows have settled, if any.
    settled: Option<Position>,
    /// A later position, and when it was reached. Two are enough: a cursor that is too old
    /// by less than twice the settle time repeats a little.
    next: Position,
    next_at: Instant,
    /// When the last row of a topic was written.
    written_at: Instant,
    /// When the cursor was last reported.
    put_at: Instant,
}

impl StreamCursor {
    /// That of the stream's ids.
    pub fn scope(&self) -> TopicScope {
        match self {
            Self::Never => TopicScope::Narrowed,
            Self::Untouched(_) | Self::Moving(_) => TopicScope::Whole,
        }
    }

    /// Rows of topics were written, which moved the stream to `position`.
    pub fn write(&mut self, position: &Position, settle: Duration) {
        let now = Instant::now();
        match self {
            Self::Never => {}
            Self::Untouched(_) => *self = Self::Moving(Box::new(CursorTrack::begin(position, now))),
            Self::Moving(track) => track.write(position, now, settle),
        }
    }

    /// Handles a crash of Postgres.
    pub fn fall_to(&mut self, safe: Xid) {
        if let Self::Moving(track) = self {
            track.next.fall_to(safe);
            if let Some(settled) = &mut track.settled {
                settled.fall_to(safe);
            }
        }
    }

    /// The cursor to store while the stream is open, if it is time.
    pub fn due(
        &mut self,
        position: &Position,
        settle: Duration,
        every: Duration,
    ) -> Option<Position> {
        let Self::Moving(track) = self else {
            return None;
        };
        let now = Instant::now();
        let is_due = now.saturating_duration_since(track.put_at) >= every;
        if !is_due || track.written_at < track.put_at {
            return None;
        }
        let settled = track.settled(position, now, settle).cloned()?;
        track.put_at = now;
        Some(settled)
    }

    /// The cursor to store once the stream has ended. `how` counts for what was written
    /// before the last chunk.
    pub fn last(
        &mut self,
        position: &Position,
        last_chunk: LastChunk,
        how: Closed,
        settle: Duration,
    ) -> Option<Position> {
        let now = Instant::now();
        match (self, last_chunk) {
            (Self::Never | Self::Untouched(Cursor::Stored), _) => None,
            (Self::Untouched(Cursor::Unknown), LastChunk::Written) => Some(position.clone()),
            (Self::Untouched(Cursor::Unknown), LastChunk::HasTopics) => None,
            (Self::Moving(_), LastChunk::Written) if how == Closed::ByBridge => {
                Some(position.clone())
            }
            (Self::Moving(track), LastChunk::Written) => {
                track.settled(position, now, settle).cloned()
            }
            (Self::Moving(track), LastChunk::HasTopics) => {
                track.written_at = now;
                track.settled(position, now, settle).cloned()
            }
        }
    }
}

/// Whether the last chunk of a stream has rows of topics that may not have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastChunk {
    Written,
    HasTopics,
}

impl CursorTrack {
    fn begin(position: &Position, now: Instant) -> Self {
        Self {
            settled: None,
            next: position.clone(),
            next_at: now,
            written_at: now,
            put_at: now,
        }
    }

    fn write(&mut self, position: &Position, now: Instant, settle: Duration) {
        self.written_at = now;
        if now.saturating_duration_since(self.next_at) >= settle {
            let settled = std::mem::replace(&mut self.next, position.clone());
            self.settled = Some(settled);
            self.next_at = now;
        }
    }

    /// The newest settled position of a stream at `position`.
    fn settled<'a>(
        &'a self,
        position: &'a Position,
        now: Instant,
        settle: Duration,
    ) -> Option<&'a Position> {
        let has_settled = |at: Instant| now.saturating_duration_since(at) >= settle;
        if has_settled(self.written_at) {
            Some(position)
        } else if has_settled(self.next_at) {
            Some(&self.next)
        } else {
            self.settled.as_ref()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::domain::snapshot::Snapshot;

    const SETTLE: Duration = Duration::from_secs(2);
    const EVERY: Duration = Duration::from_secs(600);

    /// The position after everything below this transaction, except what was running.
    fn after(xid: u64, running: &[u64]) -> Position {
        let running = running.iter().copied().map(Xid).collect();
        Position::after(Some(Xid(xid - 1)), &Snapshot::new(Xid(xid), running))
    }

    fn last(cursor: &mut StreamCursor, position: &Position, how: Closed) -> Option<Position> {
        cursor.last(position, LastChunk::Written, how, SETTLE)
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_is_the_newest_position_whose_rows_have_settled() {
        let mut cursor = StreamCursor::Untouched(Cursor::Stored);
        let mut known = None;
        // A row every second: none but the newest two is in flight, and two positions are kept.
        for xid in 10..20 {
            cursor.write(&after(xid, &[]), SETTLE);
            let left = last(&mut cursor, &after(xid, &[]), Closed::ByClient);
            let floor = |cursor: &Option<Position>| cursor.as_ref().map(Position::floor);
            assert!(floor(&left) >= floor(&known), "{left:?} after {known:?}");
            if let Some(left) = &left {
                assert!(left.floor() <= Xid(xid - 2) && left.floor() >= Xid(xid.saturating_sub(4)));
            }
            known = left;
            advance(SETTLE / 2).await;
        }
        assert!(known.is_some());
        advance(SETTLE).await;
        // Everything has settled, also what was passed over since.
        let now = after(30, &[]);
        assert_eq!(last(&mut cursor, &now, Closed::ByClient), Some(now));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_bridge_ended_has_settled_and_what_may_not_have_been_written_has_not() {
        let (before, now) = (after(10, &[]), after(20, &[]));
        let mut cursor = StreamCursor::Untouched(Cursor::Unknown);
        cursor.write(&now, SETTLE);
        assert_eq!(last(&mut cursor, &now, Closed::ByClient), None);
        assert_eq!(last(&mut cursor, &now, Closed::ByBridge), Some(now.clone()));
        let mut cursor = StreamCursor::Untouched(Cursor::Unknown);
        cursor.write(&before, SETTLE);
        advance(SETTLE).await;
        let has_topics = LastChunk::HasTopics;
        assert_eq!(
            cursor.last(&now, has_topics, Closed::ByBridge, SETTLE),
            Some(before)
        );
        let mut cursor = StreamCursor::Untouched(Cursor::Unknown);
        assert_eq!(
            cursor.last(&now, has_topics, Closed::ByBridge, SETTLE),
            None
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_written_no_row_of_a_topic_stores_a_cursor_only_if_there_is_none() {
        let now = after(20, &[]);
        for (mut cursor, stores) in [
            (StreamCursor::Untouched(Cursor::Unknown), true),
            (StreamCursor::Untouched(Cursor::Stored), false),
            (StreamCursor::Never, false),
        ] {
            let stored = last(&mut cursor, &now, Closed::ByClient);
            assert_eq!(stored.is_some(), stores, "{cursor:?}");
        }
        // Not even one that was written rows, if it passes over others.
        let mut narrowed = StreamCursor::Never;
        narrowed.write(&now, SETTLE);
        assert_eq!(last(&mut narrowed, &now, Closed::ByBridge), None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_connected_a_cursor_is_stored_now_and_then_and_only_if_it_moved() {
        let mut cursor = StreamCursor::Untouched(Cursor::Stored);
        let now = after(20, &[]);
        cursor.write(&after(10, &[]), SETTLE);
        assert_eq!(cursor.due(&now, SETTLE, EVERY), None);
        advance(EVERY).await;
        assert_eq!(cursor.due(&now, SETTLE, EVERY), Some(now.clone()));
        advance(EVERY).await;
        assert_eq!(cursor.due(&now, SETTLE, EVERY), None);
        cursor.write(&now, SETTLE);
        // What was written just now has not settled.
        assert_eq!(
            cursor.due(&after(30, &[]), SETTLE, EVERY),
            Some(after(10, &[]))
        );
    }
}
