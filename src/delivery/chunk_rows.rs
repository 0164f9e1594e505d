//! The rows in the chunks that a connection hands out: they are in flight once they are
//! written.

use std::sync::Arc;

use crate::{
    delivery::{
        batch::Event,
        counters::Activity,
        marker::{Closed, Marks, Recipient},
        page_reader::READ_IN_VAIN,
    },
    domain::{clock::Moment, history::Incarnation, notification::UserId},
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
    /// The connection, as long as rows of it may be in flight.
    recipient: Option<Arc<Recipient>>,
}

impl HandedOut {
    /// None yet, of a connection that is opened now.
    pub fn since(since: Moment) -> Self {
        Self {
            rows: Vec::new(),
            since,
            unnoted: 0,
            recipient: None,
        }
    }

    /// The row is in the next chunk.
    pub fn add(&mut self, event: &Event) {
        self.rows
            .push((event.notification().key.id, event.created()));
    }

    /// Postgres has crashed: nothing is to be marked of what was written or handed out
    /// before, as another row may have the same id now.
    pub fn forget(&mut self, marks: &Marks) {
        self.rows = Vec::new();
        self.close(Closed::ByClient, marks);
    }

    /// The chunk has been written.
    pub fn report(
        &mut self,
        user: &UserId,
        incarnation: Incarnation,
        marks: &Marks,
        activity: &Activity,
    ) {
        if self.rows.is_empty() {
            return;
        }
        // A connection that is idle again keeps no memory of its burst.
        let rows = std::mem::take(&mut self.rows);
        let created = rows.iter().filter_map(|&(_, created)| created);
        activity.written(self.since, created);
        self.unnoted += rows.len() as u32;
        let recipient = self
            .recipient
            .get_or_insert_with(|| Arc::new(Recipient::new(incarnation)));
        marks.written(recipient, rows.into_iter().map(|(row, _)| row));
        if self.unnoted >= NOTE_AFTER && marks.note_drained(user) {
            self.unnoted = 0;
        }
    }

    /// The connection has been silent for long: if all of its rows have settled, it keeps
    /// no memory of them.
    pub fn rest(&mut self) {
        self.recipient
            .take_if(|recipient| Arc::strong_count(recipient) == 1);
    }

    /// The connection has closed. What was handed out last and not reported was not
    /// written as a whole.
    pub fn close(&mut self, how: Closed, marks: &Marks) {
        if let Some(recipient) = self.recipient.take() {
            marks.closed(&recipient, how);
        }
    }
}
