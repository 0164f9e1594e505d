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
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use crate::{
    batch::{Batch, End, Event},
    disconnected::{Disconnected, Noted},
    history::History,
    identity::{Disconnection, Identity, TicketHash},
    mailbox::{Ending, Letter, Mailbox, Recovery},
    notification::{Notification, UserId},
    position::Position,
    snapshot::{Snapshot, Xid},
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
    /// The transaction of which the reading was cut off in the middle.
    pub cut_off: Option<Xid>,
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
    tail: Mutex<Tail>,
    connections: AtomicUsize,
    queue_bytes: usize,
}

impl Hub {
    /// A hub whose mailboxes hold up to `queue_bytes` bytes of text each.
    pub fn new(queue_bytes: usize) -> Self {
        Self {
            registry: Mutex::default(),
            tail: Mutex::default(),
            connections: AtomicUsize::new(0),
            queue_bytes,
        }
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How far the bridge has read. All that it had read has been put into the
    /// mailboxes before it shows here.
    pub fn tail(&self) -> Tail {
        lock(&self.tail).clone()
    }

    /// Below which transaction ids are on disk, as far as the bridge knows, if it
    /// still reads this history.
    pub fn safe(&self, history: History) -> Option<Xid> {
        let tail = lock(&self.tail);
        (tail.history == history).then_some(tail.safe)
    }

    /// Begins, or begins anew: nothing is delivered.
    pub fn start(&self, tail: Tail) {
        *lock(&self.tail) = tail;
    }

    /// What to note before a client is identified, for [`register`](Self::register).
    pub fn note(&self) -> Noted {
        lock(&self.registry).disconnected.note()
    }

    /// Opens a mailbox for a connection of somebody who was identified after
    /// `noted`, and tells how far the bridge had read by then. Dropping it
    /// closes it.
    pub fn register(self: &Arc<Self>, identity: &Identity, noted: Noted) -> (Connection, Tail) {
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
        *lock(&self.tail) = tail;
    }

    /// Puts what was read into the mailboxes of the users concerned.
    pub fn publish(&self, reading: Reading) {
        let Reading {
            notifications,
            snapshot,
            cut_off,
            tail,
        } = reading;
        for (mailboxes, notifications) in self.addressed(notifications) {
            let batch = Arc::new(Batch {
                events: notifications.into_iter().map(Event::from).collect(),
                snapshot: Arc::clone(&snapshot),
                cut_off,
                end: End::Live(Arc::clone(&tail.position)),
            });
            for mailbox in mailboxes {
                mailbox.put(&batch, self.queue_bytes);
            }
        }
        // Only now: who reads the tail and then finds its mailbox empty has
        // been sent all that the tail has seen.
        *lock(&self.tail) = tail;
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

    /// Tells the connections concerned to end.
    pub fn disconnect(&self, disconnections: &[Disconnection]) {
        let mut registry = lock(&self.registry);
        registry.disconnected.add(disconnections);
        for one in disconnections {
            for registered in registry.users.get(&one.user).into_iter().flatten() {
                if one.means(&one.user, registered.ticket) {
                    registered.mailbox.end(Ending::Disconnected);
                }
            }
        }
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
    user: UserId,
    mailbox: Arc<Mailbox>,
}

impl Connection {
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

/// No code panics while it holds one of the hub's locks, so what they guard is
/// whole even if another thread died.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;

    use super::*;
    use crate::{mailbox, notification::Expiry, position::RowKey};

    fn reading(rows: impl IntoIterator<Item = (&'static str, i64, usize)>) -> Reading {
        let notifications = rows.into_iter().map(|(user, id, bytes)| {
            let notification = Notification {
                key: RowKey { xid: Xid(1), id },
                event: None,
                text: "x".repeat(bytes),
                created_at: None,
                expires: Expiry::Never,
            };
            (UserId::parse(user).expect("a user"), notification)
        });
        Reading {
            notifications: notifications.collect(),
            snapshot: Arc::default(),
            cut_off: None,
            tail: Tail::default(),
        }
    }

    fn connect(hub: &Arc<Hub>, user: &str) -> Connection {
        let user = UserId::parse(user).expect("a user");
        hub.register(&user.into(), hub.note()).0
    }

    fn letter(connection: &Connection) -> Option<Letter> {
        let waker = noop_waker();
        match connection.poll_letter(&mut Context::from_waker(&waker)) {
            Poll::Ready(letter) => Some(letter),
            Poll::Pending => None,
        }
    }

    fn ids(connection: &Connection) -> Vec<i64> {
        match letter(connection) {
            Some(Letter::Batch(batch)) => batch
                .events
                .iter()
                .map(|event| event.notification().key.id)
                .collect(),
            other => panic!("not a batch: {other:?}"),
        }
    }

    #[test]
    fn every_connection_of_a_user_gets_the_users_rows_and_no_others() {
        let hub = Arc::new(Hub::new(1_000));
        let (tab, other_tab, bob) = (
            connect(&hub, "alice"),
            connect(&hub, "alice"),
            connect(&hub, "bob"),
        );
        hub.publish(reading([
            ("alice", 1, 1),
            ("bob", 2, 1),
            ("alice", 3, 1),
            ("carol", 4, 1),
        ]));
        assert_eq!(ids(&tab), [1, 3]);
        assert_eq!(ids(&other_tab), [1, 3]);
        assert_eq!(ids(&bob), [2]);
        assert!(letter(&tab).is_none() && letter(&bob).is_none());
    }

    #[test]
    fn a_connection_that_is_dropped_leaves_nothing_behind() {
        let hub = Arc::new(Hub::new(1_000));
        let (tab, other_tab) = (connect(&hub, "alice"), connect(&hub, "alice"));
        drop(tab);
        assert_eq!(hub.connections(), 1);
        hub.publish(reading([("alice", 1, 1)]));
        assert_eq!(ids(&other_tab), [1]);
        drop(other_tab);
        assert_eq!(hub.connections(), 0);
        assert!(lock(&hub.registry).users.is_empty());
    }

    #[test]
    fn a_full_mailbox_is_emptied_and_says_so_until_it_is_reopened() {
        let hub = Arc::new(Hub::new(1_000));
        let tab = connect(&hub, "alice");
        hub.publish(reading([("alice", 1, 600)]));
        hub.publish(reading([("alice", 2, 600)]));
        hub.publish(reading([("alice", 3, 1)]));
        assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
        assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
        tab.reopen();
        assert!(letter(&tab).is_none());
        hub.publish(reading([("alice", 4, 1)]));
        assert_eq!(ids(&tab), [4]);
    }

    #[test]
    fn too_many_rows_fill_a_mailbox_too() {
        let hub = Arc::new(Hub::new(1_000_000));
        let tab = connect(&hub, "alice");
        for id in 0..=mailbox::QUEUE_ROWS as i64 {
            hub.publish(reading([("alice", id, 1)]));
        }
        assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
    }

    #[test]
    fn an_empty_mailbox_takes_a_row_of_any_size() {
        let hub = Arc::new(Hub::new(1_000));
        let tab = connect(&hub, "alice");
        hub.publish(reading([("alice", 1, 1 << 20)]));
        assert_eq!(ids(&tab), [1]);
    }

    #[test]
    fn a_position_joins_the_tail_only_when_all_has_left_the_mailbox() {
        let hub = Arc::new(Hub::new(1_000));
        let tab = connect(&hub, "alice");
        let seen = Position::after(Some(Xid(9)), &Snapshot::new(Xid(10), Vec::new()));
        let tail = Tail {
            history: History::default(),
            position: Arc::new(seen.clone()),
            safe: Xid(0),
        };
        hub.publish(Reading {
            tail,
            ..reading([("alice", 1, 1)])
        });
        let mut position = Position::default();
        tab.join_tail(&mut position);
        assert_eq!(position, Position::default());
        assert_eq!(ids(&tab), [1]);
        tab.join_tail(&mut position);
        assert_eq!(position, seen);
    }

    fn crash(hub: &Hub, safe: u64) {
        let recovery = Recovery {
            history: History::default(),
            safe: Xid(safe),
        };
        hub.recover(recovery, Tail::default());
    }

    fn recovered(connection: &Connection) -> Xid {
        match letter(connection) {
            Some(Letter::Recovered(recovery)) => recovery.safe,
            other => panic!("no recovery: {other:?}"),
        }
    }

    #[test]
    fn a_crash_is_told_of_between_what_was_read_before_and_after_it() {
        let hub = Arc::new(Hub::new(1_000));
        let tab = connect(&hub, "alice");
        hub.publish(reading([("alice", 1, 1)]));
        crash(&hub, 7);
        hub.publish(reading([("alice", 2, 1)]));
        assert_eq!(ids(&tab), [1]);
        assert_eq!(recovered(&tab), Xid(7));
        assert_eq!(ids(&tab), [2]);
        assert!(letter(&tab).is_none());
    }

    #[test]
    fn a_full_mailbox_still_tells_of_every_crash() {
        let hub = Arc::new(Hub::new(1_000));
        let tab = connect(&hub, "alice");
        hub.publish(reading([("alice", 1, 600)]));
        crash(&hub, 7);
        hub.publish(reading([("alice", 2, 600)]));
        crash(&hub, 9);
        assert_eq!(recovered(&tab), Xid(7));
        assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
    }

    #[test]
    fn what_was_read_before_a_crash_can_be_skipped_and_nothing_else() {
        let hub = Arc::new(Hub::new(1_000));
        let tab = connect(&hub, "alice");
        hub.publish(reading([("alice", 1, 1)]));
        assert!(tab.skip_to_recovery().is_none());
        crash(&hub, 7);
        hub.publish(reading([("alice", 2, 1)]));
        let recovery = tab.skip_to_recovery().expect("a crash");
        assert_eq!(recovery.safe, Xid(7));
        assert!(letter(&tab).is_none());
        hub.publish(reading([("alice", 3, 1)]));
        assert_eq!(ids(&tab), [3]);
    }

    #[test]
    fn who_comes_while_the_bridge_drains_is_told_at_once() {
        let hub = Arc::new(Hub::new(1_000));
        let before = connect(&hub, "alice");
        hub.end_all(Ending::Draining);
        let after = connect(&hub, "alice");
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        for connection in [before, after] {
            assert_eq!(
                connection.poll_ending(&mut cx),
                Poll::Ready(Ending::Draining)
            );
            assert!(connection.poll_ending(&mut cx).is_pending());
        }
    }

    fn disconnection(user: &str, ticket: Option<u8>) -> Disconnection {
        Disconnection {
            user: UserId::parse(user).expect("a user"),
            ticket: ticket.map(|byte| TicketHash([byte; 32])),
        }
    }

    fn is_ended(connection: &Connection) -> bool {
        let waker = noop_waker();
        let ending = connection.poll_ending(&mut Context::from_waker(&waker));
        ending == Poll::Ready(Ending::Disconnected)
    }

    #[test]
    fn who_is_disconnected_while_being_identified_is_told_at_once() {
        let hub = Arc::new(Hub::new(1_000));
        let noted = hub.note();
        hub.disconnect(&[disconnection("alice", Some(1)), disconnection("bob", None)]);
        let connect = |user: &str, ticket: Option<u8>, noted| {
            let identity = Identity {
                ticket: ticket.map(|byte| TicketHash([byte; 32])),
                ..UserId::parse(user).expect("a user").into()
            };
            hub.register(&identity, noted).0
        };
        assert!(is_ended(&connect("alice", Some(1), noted)));
        assert!(is_ended(&connect("bob", Some(2), noted)));
        assert!(!is_ended(&connect("alice", Some(2), noted)));
        assert!(!is_ended(&connect("alice", None, noted)));
        assert!(!is_ended(&connect("bob", None, hub.note())));
        // Who is logged out as the bridge stops doesn't stay for the drain time.
        let leaving = connect("alice", Some(2), hub.note());
        hub.disconnect(&[disconnection("alice", None)]);
        hub.end_all(Ending::Draining);
        assert!(is_ended(&leaving));
    }
}
