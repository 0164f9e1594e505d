//! Rows on their way to a connection, with what is needed to move its position
//! past them.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    delivery::sse::{self, Format},
    domain::{
        clock::Moment,
        notification::Notification,
        position::{Follows, Position, RowKey, Unread},
        snapshot::{Snapshot, Xid},
    },
};

/// Bytes of a text up to which a live event is encoded once for all connections
/// of its user. A larger text is encoded by each of them, in pieces while it is
/// written: encoded as a whole it may take seven times its size.
const SHARED_TEXT: usize = 2 << 10;

/// A notification, and its encoded forms if they are shared.
#[derive(Debug)]
pub struct Event {
    notification: Notification,
    created: Option<Moment>,
    /// What it counts in a queue.
    bytes: usize,
    text: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
}

impl Event {
    /// Bytes that an event takes beside its text: its own, and those of its
    /// name, its time and what the allocator adds.
    pub const MEMORY: usize = size_of::<Self>() + 128;

    /// The row behind the event.
    pub fn notification(&self) -> &Notification {
        &self.notification
    }

    /// When the row was inserted, unless that has no date.
    pub fn created(&self) -> Option<Moment> {
        self.created
    }

    /// Adds the event to `out` as it goes over the wire, without its id: from the
    /// byte `from` of its text on, until `out` has grown to `limit` bytes. Returns
    /// where to go on, if that was not all.
    pub fn put(
        &self,
        out: &mut BytesMut,
        format: Format,
        sharing: Sharing,
        from: usize,
        limit: usize,
    ) -> Option<usize> {
        let notification = &self.notification;
        if sharing == Sharing::Alone || !self.is_shared() {
            return sse::put_frame(out, notification, format, from, limit);
        }
        let slot = match format {
            Format::Text => &self.text,
            Format::Json => &self.json,
        };
        out.put_slice(slot.get_or_init(|| sse::frame(notification, format)));
        None
    }

    fn is_shared(&self) -> bool {
        self.notification.text.len() <= SHARED_TEXT
    }
}

/// Bytes that a text takes while it waits, with its encoded form if that is
/// shared.
fn bytes(text: &str) -> usize {
    let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
    match text.len() <= SHARED_TEXT {
        true => text.len() + 6 * text.as_bytes().iter().filter(|byte| is_break(byte)).count(),
        false => text.len(),
    }
}

/// Whether an event is written by other connections too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// By all of its user, as it is live.
    Shared,
    /// By this one alone, as it is in a page.
    Alone,
}

impl From<Notification> for Event {
    fn from(notification: Notification) -> Self {
        let created = notification.created_at.as_deref().and_then(Moment::parse);
        Self {
            bytes: bytes(&notification.text),
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

    /// Whether other connections write it too.
    pub fn sharing(&self) -> Sharing {
        match self.end {
            End::Live(_) => Sharing::Shared,
            End::MorePages | End::CaughtUp { .. } => Sharing::Alone,
        }
    }

    /// The bytes of text in it, for the bound of a queue.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.bytes).sum()
    }

    /// The bytes that a page takes while it is written.
    pub fn memory(&self) -> usize {
        self.bytes() + self.events.len() * Event::MEMORY
    }
}

#[cfg(test)]
mod tests;
