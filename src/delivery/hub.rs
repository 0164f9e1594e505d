//! The hub maps users and topics to connections and passes rows to their mailboxes.
//!
//! The hub uses neither the database nor HTTP. Delivery never waits: each connection has
//! a mailbox that is bounded in rows and bytes. A full mailbox is emptied, and its owner
//! reads pages from its position at its own pace. So no row is lost, and a slow reader
//! holds at most one page.

use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio_postgres::types::PgLsn;

use crate::{
    delivery::{
        batch::{Batch, End, Event},
        durable_tail::DurableTail,
        fresh_tail::FreshTail,
        mailbox::{Ending, Letter, Mailbox, Put, Recovery},
        memberships::MembershipChange,
        recent_disconnections::{DisconnectCursor, Disconnected},
        recent_rows::{RecentRows, RecentSize},
        topic_routes::{RouteKey, TopicRoutes},
    },
    domain::{
        history::History,
        identity::{Disconnection, Identity, Subscriber, TicketHash},
        log_point::LogPoint,
        notification::{Addressee, Notification, UserId},
        position::{Position, Unread},
        snapshot::{Snapshot, Xid},
        topic::Topic,
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
    /// The changes of memberships that the previous reading's snapshot did not show, each
    /// with the membership as this one's shows it. They and the rows are read in one
    /// snapshot: a change that was read later could concern rows that were passed over.
    pub changes: Vec<Arc<MembershipChange>>,
    /// In the order of delivery.
    pub notifications: Vec<(Addressee, Notification)>,
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
    /// Its place among the routes, once it has topics.
    route: Option<RouteKey>,
}

#[derive(Debug, Default)]
struct Registry {
    subscribers: HashMap<Subscriber, Vec<Registered>>,
    routes: TopicRoutes<Arc<Mailbox>>,
    disconnected: Disconnected,
    /// The snapshot of the last statement whose rows were passed on. Rows of topics that it
    /// shows were dropped by whoever had no route for them.
    read: Arc<Snapshot>,
    /// Set when the bridge stops: connections that register afterwards are ended at once.
    draining: bool,
}

/// A batch's mailboxes and its rows.
type Addressed = (Vec<Arc<Mailbox>>, Vec<Arc<Event>>);

impl Registry {
    /// Passes on a change of a membership, and rows of a topic that the user has joined.
    /// Routes of a topic that the user has left are removed by the connections: its rows
    /// aren't written any more, and their credentials may grant the topic anyway.
    fn tell(&mut self, change: &Arc<MembershipChange>) {
        let Self {
            subscribers,
            routes,
            ..
        } = self;
        let of = |user: &UserId| Subscriber::from(user.clone());
        match &**change {
            MembershipChange::One {
                user, topic, now, ..
            } => {
                for registered in subscribers.get_mut(&of(user)).into_iter().flatten() {
                    if now.is_some() {
                        registered.add_route(routes, topic);
                    }
                    registered.mailbox.tell(change);
                }
            }
            MembershipChange::Any { user: Some(user) } => {
                for registered in subscribers.get(&of(user)).into_iter().flatten() {
                    registered.mailbox.tell(change);
                }
            }
            MembershipChange::Any { user: None } => {
                for registered in subscribers.values().flatten() {
                    registered.mailbox.tell(change);
                }
            }
        }
    }

    /// Groups rows by who receives them, and drops those that no connection here receives.
    fn addressed(&self, rows: Vec<(Addressee, Arc<Event>)>) -> Vec<Addressed> {
        let mut places: HashMap<Addressee, usize> = HashMap::new();
        let mut addressed: Vec<Addressed> = Vec::new();
        // The place of each event, in the order of delivery.
        let mut order = Vec::with_capacity(rows.len());
        let mut has_topics = false;
        for (addressee, event) in rows {
            let place = match places.entry(addressee) {
                hash_map::Entry::Occupied(entry) => *entry.get(),
                hash_map::Entry::Vacant(entry) => {
                    let mailboxes = self.mailboxes(entry.key());
                    if mailboxes.is_empty() {
                        continue;
                    }
                    has_topics |= entry.key().topic().is_some();
                    addressed.push((mailboxes, Vec::new()));
                    *entry.insert(addressed.len() - 1)
                }
            };
            addressed[place].1.push(event);
            order.push(place);
        }
        // A connection has one subscriber, so without topics each is in one group.
        match has_topics && addressed.len() > 1 {
            true => merged(addressed, &order),
            false => addressed,
        }
    }

    fn mailboxes(&self, addressee: &Addressee) -> Vec<Arc<Mailbox>> {
        let mailbox = |each: &Registered| Arc::clone(&each.mailbox);
        match addressee {
            Addressee::User(user) => {
                let user = Subscriber::from(user.clone());
                let connections = self.subscribers.get(&user).into_iter().flatten();
                connections.map(mailbox).collect()
            }
            Addressee::Topic(topic) if topic.is_everyone() => {
                self.subscribers.values().flatten().map(mailbox).collect()
            }
            Addressee::Topic(topic) => self.routes.of(topic).cloned().collect(),
        }
    }
}

/// Makes one batch of the groups that a connection is in: its position moves past the
/// tail's with each batch, and a second one would have no new rows. Connections that are in
/// the same groups share the batch.
fn merged(groups: Vec<Addressed>, order: &[usize]) -> Vec<Addressed> {
    let mut groups_of: HashMap<*const Mailbox, (Arc<Mailbox>, Vec<usize>)> = HashMap::new();
    for (group, (mailboxes, _)) in groups.iter().enumerate() {
        for mailbox in mailboxes {
            let entry = groups_of.entry(Arc::as_ptr(mailbox));
            let (_, groups) = entry.or_insert_with(|| (Arc::clone(mailbox), Vec::new()));
            groups.push(group);
        }
    }
    let mut together: HashMap<Vec<usize>, Vec<Arc<Mailbox>>> = HashMap::new();
    for (mailbox, groups) in groups_of.into_values() {
        together.entry(groups).or_default().push(mailbox);
    }
    let events_of = |wanted: &[usize]| -> Vec<Arc<Event>> {
        let mut rest: Vec<_> = groups.iter().map(|(_, events)| events.iter()).collect();
        let events = order.iter().filter_map(|&group| {
            let event = rest[group].next();
            event.filter(|_| wanted.contains(&group)).cloned()
        });
        events.collect()
    };
    together
        .into_iter()
        .map(|(wanted, mailboxes)| (mailboxes, events_of(&wanted)))
        .collect()
}

impl Registered {
    /// Passes rows of the topic to the connection. Returns whether they were not before.
    fn add_route(&mut self, routes: &mut TopicRoutes<Arc<Mailbox>>, topic: &Topic) -> bool {
        if topic.is_everyone() {
            return false;
        }
        let route = self.route(routes);
        routes.add(route, topic)
    }

    fn route(&mut self, routes: &mut TopicRoutes<Arc<Mailbox>>) -> RouteKey {
        let connect = || routes.connect(Arc::clone(&self.mailbox));
        *self.route.get_or_insert_with(connect)
    }
}

#[derive(Debug)]
pub struct Hub {
    registry: Mutex<Registry>,
    tail: ArcSwap<Tail>,
    connections: AtomicUsize,
    opened: AtomicU64,
    overflows: AtomicU64,
    /// Whether anyone has used topics. Until then, nothing has to be stored for them.
    has_topics: AtomicBool,
    recent: RecentRows,
    fresh: FreshTail,
    durable: DurableTail,
    queue_bytes: usize,
}

/// Figures about connections and mailboxes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Audience {
    /// Open connections.
    pub connections: usize,
    /// Connections opened so far.
    pub opened: u64,
    /// Users, and tickets without a user, with at least one connection.
    pub users: usize,
    /// Topics with at least one connection, without the one that everyone has.
    pub topics: usize,
    pub waiting_rows: usize,
    /// How often a mailbox overflowed.
    pub overflows: u64,
}

impl Hub {
    /// `queue_bytes` is the limit of each mailbox, in bytes of text.
    pub fn new(queue_bytes: usize) -> Self {
        Self {
            recent: RecentRows::new(0),
            fresh: FreshTail::default(),
            durable: DurableTail::default(),
            registry: Mutex::default(),
            tail: ArcSwap::default(),
            connections: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            has_topics: AtomicBool::new(false),
            queue_bytes,
        }
    }

    /// Keeps rows of the last minute, in up to this many bytes.
    pub fn with_recent_bytes(mut self, bytes: usize) -> Self {
        self.recent = RecentRows::new(bytes);
        self
    }

    /// Records that topics are used.
    pub fn use_topics(&self) {
        self.has_topics.store(true, Ordering::Relaxed);
    }

    pub fn has_topics(&self) -> bool {
        self.has_topics.load(Ordering::Relaxed)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Users and tickets with at least one connection.
    pub fn subscribers(&self) -> usize {
        self.registry.lock().subscribers.len()
    }

    /// Locks every mailbox, so don't call it for each row.
    pub fn audience(&self) -> Audience {
        let registry = self.registry.lock();
        let rows = registry.subscribers.values().flatten();
        Audience {
            connections: self.connections(),
            opened: self.opened.load(Ordering::Relaxed),
            users: registry.subscribers.len(),
            topics: registry.routes.topics(),
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
        self.recent.stop();
        self.durable.reset();
        self.tail.store(Arc::new(tail));
    }

    /// Replaces names of topics by equal ones that connections have, so that each is in
    /// memory once.
    pub fn share_names<'a>(&self, topics: impl IntoIterator<Item = &'a mut Topic>) {
        let mut topics = topics.into_iter().peekable();
        if topics.peek().is_none() {
            return;
        }
        let registry = self.registry.lock();
        for topic in topics {
            if let Some(name) = registry.routes.name(topic) {
                *topic = name.clone();
            }
        }
    }

    /// The rows of a user that are new to this position, up to the tail, if all of them are
    /// among the rows of the last minute and no topics have been used.
    pub fn recent_page(
        &self,
        user: &UserId,
        history: History,
        position: &Position,
    ) -> Option<Batch> {
        let page = self.recent.page(user, history, position)?;
        // Only now: nothing that was published up to the page's end concerned a topic.
        (!self.has_topics()).then_some(page)
    }

    /// Whether [`recent_page`](Self::recent_page) may have a page for this position.
    pub fn has_recent(&self, history: History, position: &Position) -> bool {
        !self.has_topics() && self.recent.reaches(history, position)
    }

    /// For waiting until the tail has all that was committed.
    pub fn fresh(&self) -> &FreshTail {
        &self.fresh
    }

    /// For asking a replica for what the tail has.
    pub fn durable(&self) -> &DurableTail {
        &self.durable
    }

    /// This poll has found all that was new, and that was published.
    /// The log was on disk up to `flushed`.
    pub fn complete(&self, poll: u64, point: LogPoint, flushed: PgLsn) {
        let tail = self.tail();
        self.durable.complete(poll, point, flushed);
        self.recent.begin(tail.history, &tail.position);
        self.fresh.publish(poll);
    }

    /// The size of the rows of the last minute.
    pub fn recent_size(&self) -> RecentSize {
        self.recent.size()
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
        let subscriber = identity.subscriber.clone();
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
            route: None,
        };
        registry
            .subscribers
            .entry(subscriber.clone())
            // Most have one.
            .or_insert_with(|| Vec::with_capacity(1))
            .push(registered);
        // While the registry is locked: from now on, whatever ends this history also
        // reaches the mailbox.
        let tail = self.tail();
        drop(registry);
        self.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Connection {
            hub: Arc::clone(self),
            number: self.opened.fetch_add(1, Ordering::Relaxed) + 1,
            subscriber,
            mailbox,
        };
        (connection, tail)
    }

    /// Tells every connection that Postgres crashed and recovered after what was
    /// published before.
    pub fn recover(&self, recovery: Recovery, tail: Tail) {
        let registry = self.registry.lock();
        self.recent.stop();
        self.durable.reset();
        // First the tail: a connection that learns of the crash requests pages of the new
        // history at once, and they are read only if the tail is in it.
        self.tail.store(Arc::new(tail));
        for Registered { mailbox, .. } in registry.subscribers.values().flatten() {
            mailbox.recover(recovery.clone());
        }
    }

    /// Passes on what one statement has read: first the changes of memberships, then the
    /// rows.
    ///
    /// A user who has left is written no row that waits in a mailbox, and one who has
    /// joined reads the topic's rows up to here from a page. So the changes precede the
    /// rows, and both precede the tail's new position.
    pub fn publish(&self, reading: Reading) {
        let Reading {
            changes,
            notifications,
            snapshot,
            unread,
            tail,
        } = reading;
        let for_topic = |(addressee, _): &(Addressee, _)| addressee.topic().is_some();
        if !self.has_topics() && (!changes.is_empty() || notifications.iter().any(for_topic)) {
            self.use_topics();
        }
        let events = notifications.into_iter();
        let rows: Vec<_> = events
            .map(|(addressee, notification)| (addressee, Arc::new(Event::from(notification))))
            .collect();
        // Before anyone is chosen to be passed the rows: a connection that registers later
        // finds them here.
        self.recent.add(&rows, &tail.position);
        let mut registry = self.registry.lock();
        for change in &changes {
            registry.tell(change);
        }
        let addressed = registry.addressed(rows);
        registry.read = Arc::clone(&snapshot);
        drop(registry);
        for (mailboxes, events) in addressed {
            let batch = Arc::new(Batch {
                events,
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
        for Registered { mailbox, .. } in registry.subscribers.values().flatten() {
            mailbox.end(reason);
        }
    }

    /// Tells the matching connections to end, including clients that are being
    /// authenticated, once they register.
    pub fn disconnect(&self, disconnections: &[Disconnection]) {
        let mut registry = self.registry.lock();
        registry.disconnected.add(disconnections);
        // Together, so that a page of them costs one pass over all connections.
        let mut userless = HashSet::new();
        for one in disconnections {
            match (one, one.user()) {
                (Disconnection::UserlessTicket(gone), _) => {
                    userless.insert(*gone);
                }
                (_, Some(user)) => {
                    let user = Subscriber::from(user.clone());
                    end(one, registry.subscribers.get(&user).into_iter().flatten());
                }
                (_, None) => end(one, registry.subscribers.values().flatten()),
            }
        }
        if !userless.is_empty() {
            let connections = registry.subscribers.values().flatten();
            let is_gone = |one: &&Registered| one.ticket.is_some_and(|it| userless.contains(&it));
            connections
                .filter(is_gone)
                .for_each(|one| one.mailbox.end(Ending::Disconnected));
        }
    }

    /// Some disconnections were skipped without being read. Clients that are being
    /// authenticated may match them, so they are told to reconnect when they register.
    pub fn skip_disconnections(&self) {
        let mut registry = self.registry.lock();
        registry.disconnected.add(&[Disconnection::Everyone]);
    }

    fn unregister(&self, subscriber: &Subscriber, mailbox: &Arc<Mailbox>) {
        let mut registry = self.registry.lock();
        let Registry {
            subscribers,
            routes,
            ..
        } = &mut *registry;
        if let Some(connections) = subscribers.get_mut(subscriber) {
            for gone in connections.extract_if(.., |one| Arc::ptr_eq(&one.mailbox, mailbox)) {
                if let Some(route) = gone.route {
                    routes.disconnect(route);
                }
            }
            if connections.is_empty() {
                subscribers.remove(subscriber);
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
    subscriber: Subscriber,
    mailbox: Arc<Mailbox>,
}

impl Connection {
    /// The connection's number in the log, unique within this bridge.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn subscriber(&self) -> &Subscriber {
        &self.subscriber
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

    /// Takes the oldest change of a membership that was not taken as a letter. Call it
    /// before a row of a topic is written.
    pub fn take_change(&self) -> Option<Arc<MembershipChange>> {
        self.mailbox.take_change()
    }

    /// Passes rows of these topics to the connection, which has read a page of everything
    /// that `page` shows. Returns whether the hub may have dropped later rows, because they
    /// were not passed to it before: then it has to read another page before it is live.
    pub fn add_routes<'a>(
        &self,
        topics: impl ExactSizeIterator<Item = &'a Topic>,
        page: &Snapshot,
    ) -> bool {
        // Most users have no topics.
        if topics.len() == 0 {
            return false;
        }
        let mut registry = self.hub.registry.lock();
        let Registry {
            subscribers,
            routes,
            read,
            ..
        } = &mut *registry;
        let mut connections = subscribers.get_mut(&self.subscriber).into_iter().flatten();
        let own = connections.find(|one| Arc::ptr_eq(&one.mailbox, &self.mailbox));
        let Some(own) = own else {
            return false;
        };
        let route = own.route(routes);
        routes.reserve(route, topics.len());
        let mut is_any_new = false;
        for topic in topics {
            is_any_new |= own.add_route(routes, topic);
        }
        is_any_new && !page.covers(read)
    }

    /// Stops passing rows of a topic that the user has left.
    pub fn remove_route(&self, topic: &Topic) {
        let mut registry = self.hub.registry.lock();
        let Registry {
            subscribers,
            routes,
            ..
        } = &mut *registry;
        let mut connections = subscribers.get(&self.subscriber).into_iter().flatten();
        let own = connections.find(|one| Arc::ptr_eq(&one.mailbox, &self.mailbox));
        if let Some(route) = own.and_then(|own| own.route) {
            routes.remove(route, topic);
        }
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
        self.hub.unregister(&self.subscriber, &self.mailbox);
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
