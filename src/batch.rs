//! Rows on their way to a connection, with what is needed to move its position
//! past them.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::{
    clock::Moment,
    notification::Notification,
    position::{Follows, Position},
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
    /// The transaction of which the reading was cut off in the middle.
    pub cut_off: Option<Xid>,
    /// What holds after the last row.
    pub end: End,
}

impl Batch {
    /// Whether the row after `index` belongs to the same transaction.
    pub fn follows(&self, index: usize) -> Follows {
        let xid = self.events[index].notification.key.xid;
        let next = match self.events.get(index + 1) {
            Some(event) => Some(event.notification.key.xid),
            None => self.cut_off,
        };
        if next == Some(xid) {
            Follows::SameTransaction
        } else {
            Follows::Other
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
