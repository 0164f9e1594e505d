//! Rows on their way to a connection, with what is needed to move its position
//! past them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::{
    clock::Moment,
    notification::Notification,
    position::{Follows, Position, RowKey, Unread},
    snapshot::{Snapshot, Xid},
    sse::{self, Format},
};

/// A notification and its encoded forms, made when first asked for and shared
/// by all connections of its user.
#[derive(Debug)]
pub struct Event {
    notification: Notification,
    created: Option<Moment>,
    text: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
}

impl Event {
    /// The row behind the event.
    pub fn notification(&self) -> &Notification {
        &self.notification
    }

    /// When the row was inserted, unless that has no date.
    pub fn created(&self) -> Option<Moment> {
        self.created
    }

    /// The event as it goes over the wire, without its id.
    pub fn frame(&self, format: Format) -> &Bytes {
        let slot = match format {
            Format::Text => &self.text,
            Format::Json => &self.json,
        };
        slot.get_or_init(|| sse::frame(&self.notification, format))
    }
}

impl From<Notification> for Event {
    fn from(notification: Notification) -> Self {
        let created = notification.created_at.as_deref().and_then(Moment::parse);
        Self {
            notification,
            created,
            text: OnceLock::new(),
            json: OnceLock::new(),
        }
    }
}

/// What a connection has seen once it has been sent a batch to its end.
#[derive(Clone, Debug)]
pub enum End {
    /// A full page: the next one follows.
    MorePages,
    /// The last page of a catch-up: all that its snapshot sees, up to `top`.
    CaughtUp {
        /// The user's youngest transaction, where rows were left out because
        /// they had been sent before.
        top: Option<Xid>,
    },
    /// A live batch: all that the bridge's own tail has seen.
    Live(Arc<Position>),
}

/// Rows of one user, in the order of delivery, all visible to one snapshot.
#[derive(Debug)]
pub struct Batch {
    /// In the order of their keys.
    pub events: Vec<Event>,
    /// What the statement that read them could see.
    pub snapshot: Arc<Snapshot>,
    /// What the reading that they are of has left for later.
    pub unread: Arc<Unread>,
    /// The last row of a page, also if it can't be delivered; none in a live batch,
    /// whose end says more.
    pub last: Option<RowKey>,
    /// What holds after the last row.
    pub end: End,
}

impl Batch {
    /// Moves a reader that has been sent the batch up to the row at `index` past
    /// that one.
    pub fn advance(&self, position: &mut Position, index: usize) {
        let row = self.events[index].notification.key;
        let next = self.events.get(index + 1);
        let follows = match next {
            Some(next) if next.notification.key.xid == row.xid => Follows::SameTransaction,
            _ => Follows::Other,
        };
        position.advance(row, &self.snapshot, follows, &self.unread);
    }

    /// Moves a reader that has been sent the whole batch to its end.
    pub fn finish(&self, position: &mut Position) {
        if let Some(last) = self.last.filter(|&last| position.is_new(last)) {
            position.advance(last, &self.snapshot, Follows::Other, &self.unread);
        }
        match &self.end {
            End::MorePages => {}
            End::Live(tail) => position.join(tail),
            End::CaughtUp { top } => position.finish(*top, &self.snapshot, &self.unread),
        }
    }

    /// The bytes of text in it, for the bound of a queue.
    pub fn bytes(&self) -> usize {
        self.events
            .iter()
            .map(|event| event.notification.text.len())
            .sum()
    }
}

#[cfg(test)]
mod tests;
