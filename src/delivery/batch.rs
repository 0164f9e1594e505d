//! A batch: rows on their way to a connection, with what is needed to move the
//! connection's position past them.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    delivery::sse::{self, Format},
    domain::{
        notification::Notification,
        position::{Follows, Position, Rest, RowKey, Unread},
        snapshot::{Snapshot, Xid},
    },
};

/// Texts of up to this many bytes are encoded once for all connections.
/// Each connection encodes a larger text itself, in pieces while it is written: encoded
/// as a whole, it may take seven times its size.
const SHARED_TEXT: usize = 2 << 10;

/// A notification with its encoded forms, if they are shared.
#[derive(Debug)]
pub struct Event {
    notification: Notification,
    /// Bytes that the event counts towards the limit of a queue.
    bytes: usize,
    text: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
}

impl Event {
    /// Bytes that an event takes in memory besides its text: the struct and its pointer,
    /// the event name and the allocator's overhead.
    pub const MEMORY: usize = size_of::<Arc<Self>>() + size_of::<Self>() + 128;

    pub fn notification(&self) -> &Notification {
        &self.notification
    }

    /// Appends the event in wire format, without its id, to `out`: from byte `from` of
    /// its text on, until `out` has grown to `limit` bytes. Returns the byte at which to
    /// continue if the event isn't complete.
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

    /// The bytes that the event takes in memory, with both encoded forms.
    pub fn memory(&self) -> usize {
        let forms = if self.is_shared() { 3 } else { 1 };
        Self::MEMORY + forms * self.bytes
    }

    fn is_shared(&self) -> bool {
        self.notification.text.len() <= SHARED_TEXT
    }
}

/// Bytes that a waiting text takes in memory, including its encoded form if that is
/// shared.
fn bytes(text: &str) -> usize {
    let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
    match text.len() <= SHARED_TEXT {
        true => text.len() + 6 * text.as_bytes().iter().filter(|byte| is_break(byte)).count(),
        false => text.len(),
    }
}

/// Whether other connections write the same event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// A live event, which all connections of its user or topic write.
    Shared,
    /// An event of a page, which only one connection writes.
    Alone,
}

impl From<Notification> for Event {
    fn from(notification: Notification) -> Self {
        Self {
            bytes: bytes(&notification.text),
            notification,
            text: OnceLock::new(),
            json: OnceLock::new(),
        }
    }
}

/// What a connection has seen once it has been sent all of a batch.
#[derive(Clone, Debug)]
pub enum End {
    /// A full page, which another page follows.
    MorePages,
    /// A page of late rows, and what it left of them. The reader's position counts them as
    /// seen, but not their memberships, so they don't move it; another page follows.
    Late(Rest),
    /// The last page of a catch-up: everything that its snapshot sees, up to `top`.
    CaughtUp {
        /// The user's youngest transaction, if rows were left out because they had been
        /// sent before.
        top: Option<Xid>,
    },
    /// A live batch: everything that the bridge's own tail has seen.
    Live(Arc<Position>),
    /// The same, as the last page of a catch-up.
    Recent(Arc<Position>),
}

/// Rows of one connection in the order of delivery, all visible to one snapshot.
/// Connections that receive the same rows share the batch, and others share its events.
#[derive(Debug)]
pub struct Batch {
    /// Ordered by key.
    pub events: Vec<Arc<Event>>,
    /// The snapshot of the statement that read the rows.
    pub snapshot: Arc<Snapshot>,
    /// What the statement left to later reads.
    pub unread: Arc<Unread>,
    /// The last row of a page, even if it can't be delivered. `None` in a live batch,
    /// whose `end` covers it.
    pub last: Option<RowKey>,
    pub end: End,
}

impl Batch {
    /// Moves the position of a reader past the row at `index`, given that it was sent the
    /// batch up to that row.
    pub fn advance(&self, position: &mut Position, index: usize) {
        let row = self.events[index].notification.key;
        let next = self.events.get(index + 1);
        let follows = match next {
            Some(next) if next.notification.key.xid == row.xid => Follows::SameTransaction,
            _ => Follows::Other,
        };
        position.advance(row, &self.snapshot, follows, &self.unread);
    }

    /// Moves the position of a reader that was sent the whole batch to its end.
    pub fn finish(&self, position: &mut Position) {
        if self.is_late() {
            return;
        }
        if let Some(last) = self.last.filter(|&last| position.is_new(last)) {
            position.advance(last, &self.snapshot, Follows::Other, &self.unread);
        }
        match &self.end {
            End::MorePages | End::Late(_) => {}
            End::Live(tail) | End::Recent(tail) => position.join(tail),
            End::CaughtUp { top } => position.finish(*top, &self.snapshot, &self.unread),
        }
    }

    /// Whether this is a page of late rows.
    pub fn is_late(&self) -> bool {
        matches!(self.end, End::Late(_))
    }

    pub fn sharing(&self) -> Sharing {
        match self.end {
            End::Live(_) | End::Recent(_) => Sharing::Shared,
            End::MorePages | End::Late(_) | End::CaughtUp { .. } => Sharing::Alone,
        }
    }

    /// The bytes that the batch counts towards the limit of a queue.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.bytes).sum()
    }

    /// The bytes that a page takes in memory while it is being written.
    pub fn memory(&self) -> usize {
        self.bytes() + self.events.len() * Event::MEMORY
    }
}
