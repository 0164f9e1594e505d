//! The rows in the chunk that a connection is writing. Once the chunk is written, they
//! are in flight.

use std::sync::Arc;

use crate::{
    delivery::{
        batch::Event,
        counters::Counters,
        marker::{Closed, Marks, Recipient},
        page_reader::SKIPPED_ROWS_BEFORE_NOTING,
    },
    domain::{clock::Moment, history::Incarnation, notification::UserId},
};

/// After this many rows on one connection, the user's delivered watermark is moved: the
/// number that a first page passes over before it does the same.
const NOTE_AFTER: u32 = SKIPPED_ROWS_BEFORE_NOTING;

/// The rows of one connection.
#[derive(Debug)]
pub struct ChunkRows {
    /// Rows in the last chunk, with the times at which they were created.
    rows: Vec<(i64, Option<Moment>)>,
    /// How many of them are for topics.
    topic_rows: u32,
    /// When the connection was opened.
    since: Moment,
    /// Rows written since the watermark was last moved.
    unnoted: u32,
    /// Shared with the rows of the connection that are in flight, as long as there are
    /// any.
    recipient: Option<Arc<Recipient>>,
}

impl ChunkRows {
    pub fn since(since: Moment) -> Self {
        Self {
            rows: Vec::new(),
            topic_rows: 0,
            since,
            unnoted: 0,
            recipient: None,
        }
    }

    /// Adds a row to the next chunk.
    pub fn add(&mut self, event: &Event) {
        let notification = event.notification();
        self.rows
            .push((notification.key.id, notification.created_at));
        self.topic_rows += u32::from(notification.topic.is_some());
    }

    /// Handles a crash of Postgres: nothing that was written or added before may be
    /// marked, because another row may have the same id now.
    pub fn forget(&mut self, marks: &Marks) {
        self.rows = Vec::new();
        self.topic_rows = 0;
        self.close(Closed::ByClient, marks);
    }

    /// The chunk has been written, on a connection of `user` if it has one.
    pub fn report(
        &mut self,
        user: Option<&UserId>,
        incarnation: Incarnation,
        marks: &Marks,
        activity: &Counters,
    ) {
        if self.rows.is_empty() {
            return;
        }
        // An idle connection keeps no memory of a past burst.
        let rows = std::mem::take(&mut self.rows);
        let created = rows.iter().filter_map(|&(_, created)| created);
        activity.written(self.since, created);
        activity.written_of_topics(std::mem::take(&mut self.topic_rows));
        self.unnoted += rows.len() as u32;
        let recipient = self
            .recipient
            .get_or_insert_with(|| Arc::new(Recipient::new(incarnation)));
        marks.written(recipient, rows.into_iter().map(|(row, _)| row));
        if let Some(user) = user
            && self.unnoted >= NOTE_AFTER
            && marks.note_drained(user)
        {
            self.unnoted = 0;
        }
    }

    /// The connection has been idle for long. Frees the recipient if all rows have
    /// settled.
    pub fn rest(&mut self) {
        self.recipient
            .take_if(|recipient| Arc::strong_count(recipient) == 1);
    }

    /// The connection has closed. Rows that were not reported were not completely
    /// written.
    pub fn close(&mut self, how: Closed, marks: &Marks) {
        if let Some(recipient) = self.recipient.take() {
            marks.closed(&recipient, how);
        }
    }
}
