//! Where what concerns a connection waits for it: batches of rows, and what has
//! happened to the server that they came from.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use crate::{
    delivery::batch::Batch,
    domain::{history::History, snapshot::Xid},
};

/// Rows that may wait in one mailbox.
pub const QUEUE_ROWS: usize = 1_000;

/// Why the bridge ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The bridge is stopping.
    Draining,
    /// The database continues as another history (a failover, a restore): the
    /// positions of open connections mean nothing in it.
    AnotherHistory,
    /// The user was disconnected, or the ticket taken away.
    Disconnected,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is in the mailbox, or its owner reads pages anyway.
    Kept,
    /// It was one too many: the mailbox has been emptied.
    Overflowed,
}

/// What the owner of a mailbox finds in it.
#[derive(Debug)]
pub enum Letter {
    /// New rows.
    Batch(Arc<Batch>),
    /// Postgres has crashed since what came before.
    Recovered(Recovery),
    /// The mailbox was full and has been emptied: read pages from your
    /// position.
    Overflowed,
}

/// Postgres has crashed and is back: transaction ids from `safe` on, and row ids
/// with them, may be handed out again.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// What has begun.
    pub history: History,
    /// What the crash has left.
    pub safe: Xid,
}

impl Recovery {
    /// Both, one after the other.
    fn and_then(self, later: Self) -> Self {
        Self {
            history: later.history,
            safe: self.safe.min(later.safe),
        }
    }
}

/// One connection's, bounded in rows and bytes.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
    owner: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Letter>,
    rows: usize,
    bytes: usize,
    overflowed: bool,
    /// A crash of Postgres that the queue told of before it was emptied. It
    /// comes before all that is in the queue now.
    recovery: Option<Recovery>,
    ending: Option<Ending>,
}

impl State {
    /// Forgets the batches, not the crashes.
    fn empty(&mut self) {
        for letter in std::mem::take(&mut self.queue) {
            if let Letter::Recovered(recovery) = letter {
                self.note(recovery);
            }
        }
        (self.rows, self.bytes) = (0, 0);
    }

    fn note(&mut self, recovery: Recovery) {
        self.recovery = Some(match self.recovery {
            Some(earlier) => earlier.and_then(recovery),
            None => recovery,
        });
    }
}

impl Mailbox {
    /// Puts a batch in, or empties the mailbox if it is full.
    ///
    /// An empty one takes any batch: a page is bounded itself, and it is already
    /// in memory.
    pub fn put(&self, batch: &Arc<Batch>, queue_bytes: usize) -> Put {
        let mut state = self.state();
        if state.overflowed {
            return Put::Kept;
        }
        let rows = state.rows + batch.events.len();
        let bytes = state.bytes + batch.bytes();
        let is_full = !state.queue.is_empty() && (rows > QUEUE_ROWS || bytes > queue_bytes);
        if is_full {
            state.empty();
            state.overflowed = true;
        } else {
            state.queue.push_back(Letter::Batch(Arc::clone(batch)));
            (state.rows, state.bytes) = (rows, bytes);
        }
        drop(state);
        self.owner.wake();
        if is_full { Put::Overflowed } else { Put::Kept }
    }

    /// How many rows are in it.
    pub fn rows(&self) -> usize {
        self.state().rows
    }

    /// Tells of a crash of Postgres, after what is in it.
    pub fn recover(&self, recovery: Recovery) {
        let mut state = self.state();
        if state.overflowed {
            state.note(recovery);
        } else {
            state.queue.push_back(Letter::Recovered(recovery));
        }
        drop(state);
        self.owner.wake();
    }

    /// Tells the owner to end. Who was disconnected stays for nothing else.
    pub fn end(&self, reason: Ending) {
        let mut state = self.state();
        if state.ending != Some(Ending::Disconnected) {
            state.ending = Some(reason);
        }
        drop(state);
        self.owner.wake();
    }

    /// Takes what came first.
    pub fn poll_letter(&self, cx: &mut Context<'_>) -> Poll<Letter> {
        // Interest first, then the look: a batch that arrives in between wakes.
        self.owner.register(cx.waker());
        let mut state = self.state();
        if let Some(recovery) = state.recovery.take() {
            Poll::Ready(Letter::Recovered(recovery))
        } else if state.overflowed {
            Poll::Ready(Letter::Overflowed)
        } else if let Some(letter) = state.queue.pop_front() {
            if let Letter::Batch(batch) = &letter {
                state.rows -= batch.events.len();
                state.bytes -= batch.bytes();
            }
            Poll::Ready(letter)
        } else {
            // A connection that is idle again keeps no memory of its burst.
            state.queue = VecDeque::new();
            Poll::Pending
        }
    }

    /// Takes the reason why the connection is to end, once.
    pub fn poll_ending(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.owner.register(cx.waker());
        match self.state().ending.take() {
            Some(reason) => Poll::Ready(reason),
            None => Poll::Pending,
        }
    }

    /// Takes new batches again after an overflow.
    pub fn reopen(&self) {
        self.state().overflowed = false;
    }

    /// Whether all that was ever put into it has been taken out.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.queue.is_empty() && !state.overflowed && state.recovery.is_none()
    }

    /// Throws away what is in it up to the last crash of Postgres and beyond, if
    /// there was one.
    pub fn skip_to_recovery(&self) -> Option<Recovery> {
        let mut state = self.state();
        let is_told = |letter: &Letter| matches!(letter, Letter::Recovered(_));
        if state.recovery.is_some() || state.queue.iter().any(is_told) {
            state.empty();
        }
        state.recovery.take()
    }

    /// No code panics while it holds the lock, so what it guards is whole even
    /// if another thread died.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
