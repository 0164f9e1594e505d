//! A connection's mailbox: a bounded queue of batches, and of notices that the server they
//! were read from has crashed.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::{
    delivery::{batch::Batch, memberships::MembershipChange, recently_published::Remembered},
    domain::{history::History, snapshot::Xid},
};

pub const QUEUE_ROWS: usize = 1_000;

/// How many changes of memberships may wait for a connection whose client doesn't read:
/// twice the topics of a stream, so that all of them can be replaced. Beyond that the
/// connection ends, because a change must not be forgotten.
pub const QUEUE_CHANGES: usize = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Draining,
    /// The database continues as another history (a failover or a restore), in which the
    /// positions of open connections mean nothing.
    AnotherHistory,
    /// The user was disconnected, or the ticket deleted.
    Disconnected,
    /// The user's memberships have changed too often for this connection.
    TooManyChanges,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was queued, or its owner reads pages anyway.
    Kept,
    /// The mailbox was full and has been emptied.
    Overflowed,
}

#[derive(Debug)]
pub enum Letter {
    Batch(Arc<Batch>),
    /// A membership of the user has changed. It overtakes the batches: none of their rows
    /// may be written if the user has left.
    Membership(Arc<MembershipChange>),
    /// Postgres crashed after the previous letters.
    /// Boxed, because crashes are rare and the queues of thousands of connections are not.
    Recovered(Box<Recovery>),
    /// The mailbox was full and has been emptied. The owner has to read pages from its
    /// position.
    Overflowed,
}

/// Postgres has crashed and recovered. Transaction ids from `safe` on may be reused, and
/// row ids with them.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// The history that began with the recovery.
    pub history: History,
    /// The durable floor: transaction ids below it are never reused.
    pub safe: Xid,
    /// The rows above it that were published before the crash. Those that are still there
    /// are the same rows.
    pub published: Arc<Remembered>,
}

impl Recovery {
    /// Combines two crashes.
    fn and_then(self, later: Self) -> Self {
        Self {
            history: later.history,
            safe: self.safe.min(later.safe),
            // They include those of the earlier crash.
            published: later.published,
        }
    }
}

/// One connection's queue, bounded in rows and bytes.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<MailboxState>,
    owner: AtomicWaker,
}

#[derive(Debug, Default)]
struct MailboxState {
    queue: VecDeque<Letter>,
    rows: usize,
    bytes: usize,
    overflowed: bool,
    /// A crash of Postgres that was in the queue when it was emptied. It precedes
    /// everything that is in the queue now.
    recovery: Option<Box<Recovery>>,
    ending: Option<Ending>,
}

impl MailboxState {
    /// Drops the batches, but keeps the crashes and the changes of memberships.
    fn empty(&mut self) {
        for letter in std::mem::take(&mut self.queue) {
            match letter {
                Letter::Recovered(recovery) => self.note(recovery),
                Letter::Membership(_) => self.queue.push_back(letter),
                Letter::Batch(_) | Letter::Overflowed => {}
            }
        }
        (self.rows, self.bytes) = (0, 0);
    }

    fn take_change(&mut self) -> Option<Arc<MembershipChange>> {
        let Some(Letter::Membership(change)) = self.queue.front() else {
            return None;
        };
        let change = Arc::clone(change);
        self.queue.pop_front();
        Some(change)
    }

    fn note(&mut self, recovery: Box<Recovery>) {
        self.recovery = Some(match self.recovery.take() {
            Some(earlier) => Box::new(earlier.and_then(*recovery)),
            None => recovery,
        });
    }
}

impl Mailbox {
    /// Queues a batch, or empties the mailbox if it is full.
    ///
    /// An empty mailbox accepts any batch: a page is bounded, and it is already in
    /// memory.
    pub fn put(&self, batch: &Arc<Batch>, queue_bytes: usize) -> Put {
        let mut state = self.state.lock();
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

    /// Queues a change of one of the owner's memberships ahead of the batches. If the user
    /// has joined, the mailbox is emptied: rows of the topic may be older than this change,
    /// so the owner has to read pages.
    pub fn tell(&self, change: &Arc<MembershipChange>) {
        let mut state = self.state.lock();
        let is_change = |letter: &&Letter| matches!(letter, Letter::Membership(_));
        let changes = state.queue.iter().take_while(is_change).count();
        if changes < QUEUE_CHANGES {
            let change = Letter::Membership(Arc::clone(change));
            state.queue.insert(changes, change);
        } else {
            state.ending.get_or_insert(Ending::TooManyChanges);
        }
        if change.may_join() {
            state.empty();
            state.overflowed = true;
        }
        drop(state);
        self.owner.wake();
    }

    /// Takes the oldest change of a membership, if there is one.
    pub fn take_change(&self) -> Option<Arc<MembershipChange>> {
        self.state.lock().take_change()
    }

    pub fn rows(&self) -> usize {
        self.state.lock().rows
    }

    /// Queues a crash of Postgres.
    pub fn recover(&self, recovery: Recovery) {
        let recovery = Box::new(recovery);
        let mut state = self.state.lock();
        if state.overflowed {
            state.note(recovery);
        } else {
            state.queue.push_back(Letter::Recovered(recovery));
        }
        drop(state);
        self.owner.wake();
    }

    /// Tells the owner to end the connection. [`Ending::Disconnected`] is final: no later
    /// reason replaces it.
    pub fn end(&self, reason: Ending) {
        let mut state = self.state.lock();
        if state.ending != Some(Ending::Disconnected) {
            state.ending = Some(reason);
        }
        drop(state);
        self.owner.wake();
    }

    /// Takes the oldest letter.
    pub fn poll_letter(&self, cx: &mut Context<'_>) -> Poll<Letter> {
        // Register the waker before checking, so that a batch that arrives in between
        // wakes the task.
        self.owner.register(cx.waker());
        let mut state = self.state.lock();
        if let Some(change) = state.take_change() {
            Poll::Ready(Letter::Membership(change))
        } else if let Some(recovery) = state.recovery.take() {
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
            // An idle connection keeps no memory of a past burst.
            state.queue = VecDeque::new();
            Poll::Pending
        }
    }

    /// Takes the reason why the connection has to end. Returns it once.
    pub fn poll_ending(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.owner.register(cx.waker());
        match self.state.lock().ending.take() {
            Some(reason) => Poll::Ready(reason),
            None => Poll::Pending,
        }
    }

    /// Accepts batches again after an overflow.
    pub fn reopen(&self) {
        self.state.lock().overflowed = false;
    }

    /// Whether everything that was ever queued has been taken.
    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.queue.is_empty() && !state.overflowed && state.recovery.is_none()
    }

    /// If a crash of Postgres is queued, empties the mailbox, including what follows the
    /// crash, and returns the crash.
    pub fn skip_to_recovery(&self) -> Option<Recovery> {
        let mut state = self.state.lock();
        let is_told = |letter: &Letter| matches!(letter, Letter::Recovered(_));
        if state.recovery.is_some() || state.queue.iter().any(is_told) {
            state.empty();
        }
        state.recovery.take().map(|recovery| *recovery)
    }
}
