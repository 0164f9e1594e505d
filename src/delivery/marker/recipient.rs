//! How a connection closed, as its rows in flight need to know.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::domain::history::Incarnation;

/// A connection that rows were written to, shared by the connection and its rows in
/// flight. A connection to which no row is written has none.
#[derive(Debug)]
pub struct Recipient {
    incarnation: Incarnation,
    /// One of the constants below.
    state: AtomicU8,
}

const OPEN: u8 = 0;
const ENDED: u8 = 1;
const CLOSED: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client disconnected or stopped reading: its page may have been unloaded, and
    /// may not have shown the last rows.
    ByClient,
    /// The bridge ended the stream properly: the client returns with its last event id.
    ByBridge,
}

impl Recipient {
    /// An open connection. The ids of its rows are only valid in this incarnation of the
    /// server.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            state: AtomicU8::new(OPEN),
        }
    }

    /// The incarnation of the server that its rows belong to.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn close(&self, how: Closed) {
        let state = match how {
            Closed::ByClient => CLOSED,
            Closed::ByBridge => ENDED,
        };
        self.state.store(state, Ordering::Release);
    }

    /// Whether the connection is still open or was ended by the bridge.
    pub(super) fn stayed(&self) -> bool {
        self.state.load(Ordering::Acquire) != CLOSED
    }

    pub(super) fn is_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) == ENDED
    }
}
