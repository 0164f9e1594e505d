//! The rows that a connection has handed to its socket, and what is told of them
//! once they are written.

use crate::{
    activity::Activity, batch::Event, clock::Moment, drained::Drained, history::Incarnation,
    marker::Marks, notification::UserId, reader::READ_IN_VAIN,
};

/// After so many rows on one connection it is noted that they need not be looked
/// for any more: as many as a first page passes over before it notes that.
const NOTE_AFTER: u32 = READ_IN_VAIN;

/// Those of one connection.
#[derive(Debug)]
pub struct HandedOut {
    /// In the chunk that was last handed out, with the times of their rows.
    rows: Vec<(i64, Option<Moment>)>,
    /// When the connection was opened.
    since: Moment,
    /// How many were written and not noted.
    unnoted: u32,
}

impl HandedOut {
    /// None yet, of a connection that is opened now.
    pub fn since(since: Moment) -> Self {
        Self {
            rows: Vec::new(),
            since,
            unnoted: 0,
        }
    }

    /// The row is in the next chunk.
    pub fn add(&mut self, event: &Event) {
        self.rows
            .push((event.notification().key.id, event.created()));
    }

    /// What was in the chunk is not to be told.
    pub fn forget(&mut self) {
        self.rows = Vec::new();
    }

    /// The chunk has been written.
    pub fn report(
        &mut self,
        user: &UserId,
        incarnation: Incarnation,
        marks: &Marks,
        activity: &Activity,
        drained: &Drained,
    ) {
        if self.rows.is_empty() {
            return;
        }
        // A connection that is idle again keeps no memory of its burst.
        let rows = std::mem::take(&mut self.rows);
        let created = rows.iter().filter_map(|&(_, created)| created);
        activity.written(self.since, created);
        self.unnoted += rows.len() as u32;
        marks.written(incarnation, rows.into_iter().map(|(row, _)| row));
        if self.unnoted >= NOTE_AFTER && drained.note_live(user) {
            self.unnoted = 0;
        }
    }
}
