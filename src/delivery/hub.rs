//! The hub maps users to their connections and passes rows to their mailboxes.
//!
//! The hub uses neither the database nor HTTP. Delivery never waits: each connection has
//! a mailbox that is bounded in rows and bytes. A full mailbox is emptied, and its owner
//! reads pages from its position at its own pace. So no row is lost, and a slow reader
//! holds at most one page.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    delivery::{
        batch::{Batch, End, Event},
        mailbox::{Ending, Letter, Mailbox, Put, Recovery},
        recent_disconnections::{DisconnectCursor, Disconnected},
    },
    domain::{
        history::History,
        identity::{Disconnection, Identity, TicketHash},
        notification::{Notification, UserId},
        position::{Position, Unread},
        snapshot::{Snapshot, Xid},
    },
};

#[derive(Clone, Debug, Default)]
pub struct Tail {
    pub history: History,
    /// What the bridge has read and put into the mailboxes.
    pub position: Arc<Position>,
    /// The durable floor: transaction ids below it are on disk, so no crash in this
    /// history's incarnation lets them be reused.
    pub safe: Xid,
}

/// What was read from the table's tail, for all users.
#[derive(Debug)]
pub struct Reading {
    pub notifications: Vec<(UserId, Notification)>,
    /// The snapshot of the statement that read the rows.
    pub snapshot: Arc<Snapshot>,
    /// What the statement left to later reads.
    pub unread: Arc<Unread>,
    /// The tail after these rows.
    pub tail: Tail,
}

#[derive(Debug)]
struct Registered {
    mailbox: Arc<Mailbox>,
    ticket: Option<TicketHash>,
}

#[derive(Debug, Default)]
struct Registry {
    users: HashMap<UserId, Vec<Registered>>,
    disconnected: Disconnected,
    /// Set when the bridge stops: connections that register afterwards are ended at once.
    draining: bool,
}

#[derive(Debug)]
pub struct Hub {
    registry: Mutex<Registry>,
    tail: ArcSwap<Tail>,
    connections: AtomicUsize,
    opened: AtomicU64,
    overflows: AtomicU64,
    queue_bytes: usize,
}

/// Figures about connections and mailboxes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Audience {
    /// Open connections.
    pub connections: usize,
    /// Connections opened so far.
    pub opened: u64,
    /// Users with at least one connection.
    pub users: usize,
    pub waiting_rows: usize,
    /// How often a mailbox overflowed.
    pub overflows: u64,
}

impl Hub {
    /// `queue_bytes` is the limit of each mailbox, in bytes of text.
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

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Locks every mailbox, so don't call it for each row.
    pub fn audience(&self) -> Audience {
        let registry = self.registry.lock();
        let rows = registry.users.values().flatten();
        Audience {
            connections: self.connections(),
            opened: self.opened.load(Ordering::Relaxed),
            users: registry.users.len(),
            waiting_rows: rows.map(|each| each.mailbox.rows()).sum(),
            overflows: self.overflows.load(Ordering::Relaxed),
        }
    }

    /// How far the bridge has read. Everything up to there was put into the mailboxes
    /// before this value was set.
    pub fn tail(&self) -> Arc<Tail> {
        self.tail.load_full()
    }

    /// The durable floor, as far as the bridge knows, if the bridge still reads this
    /// history.
    pub fn safe(&self, history: History) -> Option<Xid> {
        let tail = self.tail.load();
        (tail.history == history).then_some(tail.safe)
    }

    /// Sets the tail at the start, or when another history begins. Delivers nothing.
    pub fn start(&self, tail: Tail) {
        self.tail.store(Arc::new(tail));
    }

    /// Call this before a client is authenticated, and pass the result to
    /// [`register`](Self::register).
    pub fn note(&self) -> DisconnectCursor {
        self.registry.lock().disconnected.note()
    }

    /// Registers a connection of a client whose authentication began after `noted`, and
    /// returns how far the bridge had read by then. Dropping the connection unregisters
    /// it.
    pub fn register(
        self: &Arc<Self>,
        identity: &Identity,
        noted: DisconnectCursor,
    ) -> (Connection, Arc<Tail>) {
        let user = identity.user.clone();
        let mailbox = Arc::new(Mailbox::default());
        let mut registry = self.registry.lock();
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
        // While the registry is locked: from now on, whatever ends this history also
        // reaches the mailbox.
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

    /// Tells every connection that Postgres crashed and recovered after what was
    /// published before.
    pub fn recover(&self, recovery: Recovery, tail: Tail) {
        let registry = self.registry.lock();
        for Registered { mailbox, .. } in registry.users.values().flatten() {
            mailbox.recover(recovery);
        }
        self.tail.store(Arc::new(tail));
    }

    /// Puts the rows into the mailboxes of their users' connections.
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
        // Only now: a connection that reads the tail and then finds its mailbox empty has
        // been sent everything that the tail has seen.
        self.tail.store(Arc::new(tail));
    }

    /// Tells every connection to end. With [`Draining`](Ending::Draining), this includes
    /// connections that register later.
    pub fn end_all(&self, reason: Ending) {
        let mut registry = self.registry.lock();
        registry.draining |= reason == Ending::Draining;
        for Registered { mailbox, .. } in registry.users.values().flatten() {
            mailbox.end(reason);
        }
    }

    /// Tells the matching connections to end, including clients that are being
    /// authenticated, once they register.
    pub fn disconnect(&self, disconnections: &[Disconnection]) {
        let mut registry = self.registry.lock();
        registry.disconnected.add(disconnections);
        for one in disconnections {
            match one.user() {
                Some(user) => end(one, registry.users.get(user).into_iter().flatten()),
                None => end(one, registry.users.values().flatten()),
            }
        }
    }

    /// Some disconnections were skipped without being read. Clients that are being
    /// authenticated may match them, so they are told to reconnect when they register.
    pub fn skip_disconnections(&self) {
        let mut registry = self.registry.lock();
        registry.disconnected.add(&[Disconnection::Everyone]);
    }

    /// Groups notifications by user, and drops those of users who aren't connected.
    fn addressed(
        &self,
        notifications: Vec<(UserId, Notification)>,
    ) -> Vec<(Vec<Arc<Mailbox>>, Vec<Notification>)> {
        let registry = self.registry.lock();
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
        let mut registry = self.registry.lock();
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

#[derive(Debug)]
pub struct Connection {
    hub: Arc<Hub>,
    number: u64,
    user: UserId,
    mailbox: Arc<Mailbox>,
}

impl Connection {
    /// The connection's number in the log, unique within this bridge.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Takes the reason why the connection has to end. Returns it once.
    pub fn poll_ending(&self, cx: &mut Context<'_>) -> Poll<Ending> {
        self.mailbox.poll_ending(cx)
    }

    /// Takes the oldest letter.
    pub fn poll_letter(&self, cx: &mut Context<'_>) -> Poll<Letter> {
        self.mailbox.poll_letter(cx)
    }

    /// Accepts batches again after an overflow. Call it before requesting the page that
    /// closes the gap.
    pub fn reopen(&self) {
        self.mailbox.reopen();
    }

    /// Joins `position` with the bridge's own, if the mailbox is empty.
    pub fn join_tail(&self, position: &mut Position) {
        // This order matters; see `publish`.
        let tail = self.hub.tail();
        if self.mailbox.is_empty() {
            position.join(&tail.position);
        }
    }

    /// If Postgres has crashed, empties the mailbox and returns the crash. The owner then
    /// has to read pages from its position.
    pub fn skip_to_recovery(&self) -> Option<Recovery> {
        self.mailbox.skip_to_recovery()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hub.unregister(&self.user, &self.mailbox);
    }
}

/// Ends those of `connections` that the disconnection matches. The caller has already
/// selected them by user.
fn end<'a>(one: &Disconnection, connections: impl Iterator<Item = &'a Registered>) {
    for registered in connections {
        if one.means_ticket(registered.ticket) {
            registered.mailbox.end(Ending::Disconnected);
        }
    }
}

#[cfg(test)]
mod tests;
