//! A connection, as the rows that were written to it know it.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::domain::history::Incarnation;

/// A connection that rows were written to. The connection shares it with its rows that
/// are in flight; a connection that no row is written to has none.
#[derive(Debug)]
pub struct Recipient {
    incarnation: Incarnation,
    /// One of the constants below.
    state: AtomicU8,
}

const OPEN: u8 = 0;
const ENDED: u8 = 1;
const CLOSED: u8 = 2;

/// How a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client is gone, or took nothing: its page may have been unloaded, and may
    /// not have shown what was written last.
    ByClient,
    /// The bridge ended the stream in order: the client returns with its last event id.
    ByBridge,
}

impl Recipient {
    /// An open connection. The ids of its rows mean something in this incarnation of the
    /// server only.
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

    /// The connection has closed.
    pub(super) fn close(&self, how: Closed) {
        let state = match how {
            Closed::ByClient => CLOSED,
            Closed::ByBridge => ENDED,
        };
        self.state.store(state, Ordering::Release);
    }

    /// Whether the client was there for as long as the connection could last.
    pub(super) fn stayed(&self) -> bool {
        self.state.load(Ordering::Acquire) != CLOSED
    }

    /// Whether the bridge has ended the stream.
    pub(super) fn is_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) == ENDED
    }
}
