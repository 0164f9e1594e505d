//! Who is connected: user → connections.
//!
//! The hub knows neither database nor HTTP. Delivering never waits: each
//! connection has a mailbox that is bounded in rows and bytes. A mailbox that
//! is full is emptied, and its owner goes back to reading pages from its
//! position, at its own pace: nothing is lost, and a slow reader holds no more
//! than one page.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;

use crate::{
    delivery::{
        batch::{Batch, End, Event},
        mailbox::{Ending, Letter, Mailbox, Put, Recovery},
        recent_disconnections::{Disconnected, Noted},
    },
    domain::{
        history::History,
        identity::{Disconnection, Identity, TicketHash},
        notification::{Notification, UserId},
        position::{Position, Unread},
        snapshot::{Snapshot, Xid},
    },
};

/// How far the bridge itself has read the table.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    /// The history that the position belongs to.
    pub history: History,
    /// What the bridge has seen and delivered to every mailbox concerned.
    pub position: Arc<Position>,
    /// Transaction ids below this one are on disk: no crash of this history's
    /// incarnation hands them out again.
    pub safe: Xid,
}

/// What has been read of the table's tail, for all users.
#[derive(Debug)]
pub struct Reading {
    /// In the order of delivery.
    pub notifications: Vec<(UserId, Notification)>,
    /// What the statement that read them could see.
    pub snapshot: Arc<Snapshot>,
    /// What the reading has left for later.
    pub unread: Arc<Unread>,
    /// What the bridge has seen after it.
    pub tail: Tail,
}

/// One connection as the hub knows it.
#[derive(Debug)]
struct Registered {
    mailbox: Arc<Mailbox>,
    ticket: Option<TicketHash>,
}

#[derive(Debug, Default)]
struct Registry {
    users: HashMap<UserId, Vec<Registered>>,
    disconnected: Disconnected,
    /// Set once the bridge stops: who comes now is told at once.
    draining: bool,
}

/// Where connections register and what is read is handed out.
#[derive(Debug)]
pub struct Hub {
    registry: Mutex<Registry>,
    tail: ArcSwap<Tail>,
    connections: AtomicUsize,
    opened: AtomicU64,
    overflows: AtomicU64,
    queue_bytes: usize,
}

/// Who is there, and what waits for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Audience {
    /// Connections that were opened so far.
    pub opened: u64,
    /// Users with a connection.
    pub users: usize,
    /// Rows in the mailboxes of all connections.
    pub waiting_rows: usize,
    /// Mailboxes that were full so far.
    pub overflows: u64,
}

impl Hub {
    /// A hub whose mailboxes hold up to `queue_bytes` bytes of text each.
    pub fn new(queue_bytes: usize) -> Self {
        Self {
            registry: Mutex::default(),
            tail: ArcSwap::default(),
            connections: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            queue_bytes,
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Who is there. It looks into every mailbox: not to be asked at every row.
    pub fn audience(&self) -> Audience {
        let registry = lock(&self.registry);
        let rows = registry.users.values().flatten();
        Audience {
            opened: self.opened.load(Ordering::Relaxed),
            users: registry.users.len(),
            waiting_rows: rows.map(|each| each.mailbox.rows()).sum(),
            overflows: self.overflows.load(Ordering::Relaxed),
        }
    }

    /// How far the bridge has read. All that it had read has been put into the
    /// mailboxes before it shows here.
    pub fn tail(&self) -> Arc<Tail> {
        self.tail.load_full()
    }

    /// Below which transaction ids are on disk, as far as the bridge knows, if it
    /// still reads this history.
    pub fn safe(&self, history: History) -> Option<Xid> {
        let tail = self.tail.load();
        (tail.history == history).then_some(tail.safe)
    }

    /// Begins, or begins anew: nothing is delivered.
    pub fn start(&self, tail: Tail) {
        self.tail.store(Arc::new(tail));
    }

    /// What to note before a client is identified, for [`register`](Self::register).
    pub fn note(&self) -> Noted {
        lock(&self.registry).disconnected.note()
    }

    /// Opens a mailbox for a connection of somebody who was identified after
    /// `noted`, and tells how far the bridge had read by then. Dropping it
    /// closes it.
    pub fn register(
        self: &Arc<Self>,
        identity: &Identity,
        noted: Noted,
    ) -> (Connection, Arc<Tail>) {
        let user = identity.user.clone();
        let mailbox = Arc::new(Mailbox::default());
        let mut registry = lock(&self.registry);
        if registry.disconnected.means(identity, noted) {
            mailbox.end(Ending::Disconnected);
        }
        if registry.draining {
            mailbox.end(Ending::Draining);
        }
        let registered = Registered {
            mailbox: Arc::clone(&mailbox),
            ticket: identity.ticket,
        };
        registry
            .users
            .entry(user.clone())
            .or_default()
            .push(registered);
        // With the registry held: whatever ends this history from now on tells
        // the mailbox.
        let tail = self.tail();
        drop(registry);
        self.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Connection {
            hub: Arc::clone(self),
            number: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
            user,
            mailbox,
        };
        (connection, tail)
    }

    /// Tells every connection that Postgres has crashed and recovered, after
    /// what was read before.
    pub fn recover(&self, recovery: Recovery, tail: Tail) {
        let registry = lock(&self.registry);
        for Registered { mailbox, .. } in registry.users.values().flatten() {
            mailbox.recover(recovery);
        }
        self.tail.store(Arc::new(tail));
    }

    /// Puts what was read into the mailboxes of the users concerned.
    pub fn publish(&self, reading: Reading) {
        let Reading {
            notifications,
            snapshot,
            unread,
            tail,
        } = reading;
        for (mailboxes, notifications) in self.addressed(notifications) {
            let batch = Arc::new(Batch {
                events: notifications.into_iter().map(Event::from).collect(),
                snapshot: Arc::clone(&snapshot),
                unread: Arc::clone(&unread),
                last: None,
                end: End::Live(Arc::clone(&tail.position)),
            });
            for mailbox in mailboxes {
                if mailbox.put(&batch, self.queue_bytes) == Put::Overflowed {
                    self.overflows.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        // Only now: who reads the tail and then finds its mailbox empty has
        // been sent all that the tail has seen.
        self.tail.store(Arc::new(tail));
    }

    /// Tells every connection to end; those that still come, too, if the bridge
    /// is [`Draining`](Ending::Draining).
    pub fn end_all(&self, reason: Ending) {
        let mut registry = lock(&self.registry);
        registry.draining |= reason == Ending::Draining;
        for Registered { mailbox, .. } in registry.users.values().flatten() {
            mailbox.end(reason);
        }
    }

    /// Tells the connections concerned to end, and those that are still being
    /// identified once they register.
    pub fn disconnect(&self, disconnections: &[Disconnection]) {
        let mut registry = lock(&self.registry);
        registry.disconnected.add(disconnections);
        for one in disconnections {
            match one.user() {
                Some(user) => end(one, registry.users.get(user).into_iter().flatten()),
                None => end(one, registry.users.values().flatten()),
            }
        }
    }

    /// Disconnections were left unread that may mean clients which are being
    /// identified: these are sent back once they register.
    pub fn skip_disconnections(&self) {
        let mut registry = lock(&self.registry);
        registry.disconnected.add(&[Disconnection::Everyone]);
    }

    /// Sorts notifications by user, and leaves out the users who are away.
    fn addressed(
        &self,
        notifications: Vec<(UserId, Notification)>,
    ) -> Vec<(Vec<Arc<Mailbox>>, Vec<Notification>)> {
        let registry = lock(&self.registry);
        let mut places: HashMap<UserId, usize> = HashMap::new();
        let mut addressed: Vec<(Vec<Arc<Mailbox>>, Vec<Notification>)> = Vec::new();
        for (user, notification) in notifications {
            if let Some(&place) = places.get(&user) {
                addressed[place].1.push(notification);
            } else if let Some(connections) = registry.users.get(&user) {
                let mailboxes = connections.iter().map(|each| Arc::clone(&each.mailbox));
                places.insert(user, addressed.len());
                addressed.push((mailboxes.collect(), vec![notification]));
            }
        }
        addressed
    }

    fn unregister(&self, user: &UserId, mailbox: &Arc<Mailbox>) {
        let mut registry = lock(&self.registry);
        if let Some(connections) = registry.users.get_mut(user) {
            connections.retain(|other| !Arc::ptr_eq(&other.mailbox, mailbox));
            if connections.is_empty() {
                registry.users.remove(user);
            }
        }
        drop(registry);
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A registered connection.
#[derive(Debug)]
pub struct Connection {
    hub: Arc<Hub>,
    number: u64,
    user: UserId,
    mailbox: Arc<Mailbox>,
}

impl Connection {
    /// By which the log knows it: no other of this bridge has the same.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whose connection it is.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Takes the reason why the connection is to end, once.
    pub fn poll_ending(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.mailbox.poll_ending(cx)
    }

    /// Takes what came first.
    pub fn poll_letter(&self, cx: &mut Context<'_>) -> Poll<Letter> {
        self.mailbox.poll_letter(cx)
    }

    /// Takes new batches again after an overflow. Call it before the page is
    /// read that is to close the gap.
    pub fn reopen(&self) {
        self.mailbox.reopen();
    }

    /// Joins `position` with the bridge's own, if all that the bridge has seen
    /// has left the mailbox.
    pub fn join_tail(&self, position: &mut Position) {
        // In this order; see `publish`.
        let tail = self.hub.tail();
        if self.mailbox.is_empty() {
            position.join(&tail.position);
        }
    }

    /// Throws away what is in the mailbox up to the last crash of Postgres, if
    /// there was one. The owner reads pages from its position then.
    pub fn skip_to_recovery(&self) -> Option<Recovery> {
        self.mailbox.skip_to_recovery()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hub.unregister(&self.user, &self.mailbox);
    }
}

/// Ends those of `connections`, all of a user who is concerned, that are meant.
fn end<'a>(one: &Disconnection, connections: impl Iterator<Item = &'a Registered>) {
    for registered in connections {
        if one.means_ticket(registered.ticket) {
            registered.mailbox.end(Ending::Disconnected);
        }
    }
}

/// No code panics while it holds the lock, so what it guards is whole even if
/// another thread died.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
