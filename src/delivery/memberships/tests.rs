//! Random interleavings against an oracle that knows only the order of commits, and the
//! same with each rule broken.
//!
//! The world is a database, a bridge and a client in memory. One user has memberships in a
//! few topics. Writers insert rows, join and leave, in transactions that overlap. The bridge
//! reads its tail in small pages, and the client's connection reads pages and is live, as
//! `EventStream` does. Connections break anywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::domain::position::{Follows, Unread};

const TOPICS: usize = 3;
const WRITERS: usize = 5;

/// Rows of a page of the tail, and of a connection.
const TAIL_ROWS: usize = 4;
const PAGE_ROWS: usize = 3;

/// Batches that a mailbox holds.
const MAILBOX: usize = 4;

impl<I: IntoIterator<Item = (Topic, Membership)>> From<I> for MembershipTable {
    fn from(memberships: I) -> Self {
        memberships.into_iter().collect()
    }
}

impl Memberships {
    fn ended_mut(&mut self) -> &mut Vec<EndedMembership> {
        &mut self.held.get_or_insert_default().ended
    }
}

/// A rule that is broken, or a simpler design that was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// The transaction of a membership doesn't belong to it.
    OwnTransaction,
    /// `since` is the membership's transaction.
    SinceIsXid,
    /// There are no late rows: positions say nothing about memberships.
    NoLateRows,
    /// Late rows move the position.
    LateRowsMoveThePosition,
    /// Ids keep the position until all pages are through, and so does the connection.
    NoPageOnChange,
    /// Only pages test `since`.
    LiveRowsAreNotTested,
    /// A row in the mailbox is written although its topic was left.
    QueuedRowsAreKept,
    /// Changes that are read while a page is read aren't applied to it.
    PagesIgnoreChanges,
    /// A page's topics are routed only when the connection goes live, without another page,
    /// even if the tail has been read meanwhile.
    RoutedAfterThePage,
    /// Nothing is remembered of memberships that ended.
    EndedAreForgotten,
    /// Of memberships that ended before their late rows were sent, all rows count as sent.
    EndedCountAsSent,
    /// The new rows of a page that continued the late rows are written.
    ContinuationsAreComplete,
    /// Late rows of pages after the first may be of any membership.
    LaterMembershipsJoinLatePages,
    /// A change that a page has shown already is applied when the tail reads it.
    OldChangesApply,
    /// A finished position is past the rows only.
    PositionsDontPassMemberships,
    /// Rows of topics are passed over while it isn't known which topics are left.
    OutdatedRowsArePassed,
    /// A page is taken that was requested before any membership may have changed.
    OutdatedPagesAreTaken,
}

impl Broken {
    const ALL: [Self; 17] = [
        Self::OwnTransaction,
        Self::SinceIsXid,
        Self::NoLateRows,
        Self::LateRowsMoveThePosition,
        Self::NoPageOnChange,
        Self::LiveRowsAreNotTested,
        Self::QueuedRowsAreKept,
        Self::PagesIgnoreChanges,
        Self::RoutedAfterThePage,
        Self::EndedAreForgotten,
        Self::EndedCountAsSent,
        Self::ContinuationsAreComplete,
        Self::LaterMembershipsJoinLatePages,
        Self::OldChangesApply,
        Self::PositionsDontPassMemberships,
        Self::OutdatedRowsArePassed,
        Self::OutdatedPagesAreTaken,
    ];

    /// Those of which random programs show no failure. The first can't fail while only pages
    /// add topics; the others have tests of their own.
    const NOT_PROVOKED: [Self; 4] = [
        Self::LiveRowsAreNotTested,
        Self::EndedCountAsSent,
        Self::ContinuationsAreComplete,
        Self::OldChangesApply,
    ];
}

/// What went wrong, each with the first seed in which it did.
#[derive(Debug, Default)]
struct Outcome {
    written: usize,
    late: usize,
    /// Repeated across a break. Allowed.
    repeated: usize,
    lost: usize,
    /// Never owed.
    foreign: usize,
    /// Not owed at the time of the newest snapshot that the bridge had read.
    stale: usize,
    /// Twice in one connection.
    twice: usize,
    stuck: usize,
    first_seed: Option<u64>,
}

impl Outcome {
    fn is_exact(&self) -> bool {
        self.lost + self.foreign + self.stale + self.twice + self.stuck == 0
    }

    fn add(&mut self, seed: u64, one: Self) {
        if !one.is_exact() {
            self.first_seed.get_or_insert(seed);
        }
        self.written += one.written;
        self.late += one.late;
        self.repeated += one.repeated;
        self.lost += one.lost;
        self.foreign += one.foreign;
        self.stale += one.stale;
        self.twice += one.twice;
        self.stuck += one.stuck;
    }
}

/// A row, of the user if it has no topic.
#[derive(Clone, Copy, Debug)]
struct Row {
    key: RowKey,
    topic: Option<usize>,
}

#[derive(Clone, Debug)]
struct Transaction {
    xid: Xid,
    /// Its first snapshot, in REPEATABLE READ.
    snapshot: Option<(usize, Snapshot)>,
    /// Changes that it made: the topic's membership from then on.
    changes: BTreeMap<usize, Option<Membership>>,
}

/// A commit that changed a membership.
#[derive(Clone, Debug)]
struct Change {
    xid: Xid,
    topic: usize,
}

/// A moment, as the number of commits before it.
type Moment = usize;

#[derive(Debug)]
struct Page {
    at: Moment,
    snapshot: Arc<Snapshot>,
    memberships: Vec<(Topic, Membership)>,
    rows: Vec<Row>,
    rest: Rest,
    late: LateRows,
    top: Option<Xid>,
}

#[derive(Clone, Debug)]
struct Batch {
    rows: Vec<Row>,
    snapshot: Arc<Snapshot>,
    unread: Unread,
    tail: Position,
}

#[derive(Debug)]
enum Phase {
    /// A page is requested next.
    Between,
    Requested(LateWanted, Position),
    Read(Box<Page>),
    Live,
}

#[derive(Debug)]
enum Writing {
    Page(Box<Page>, usize),
    Batch(Batch, usize),
}

#[derive(Debug)]
struct Connection {
    position: Position,
    memberships: Memberships,
    phase: Phase,
    writing: Option<Writing>,
    mailbox: VecDeque<Batch>,
    overflowed: bool,
    routed: BTreeSet<usize>,
    /// What was written, with the position after it.
    written: Vec<(RowKey, Position)>,
    /// The newest moment at which the connection's memberships are known.
    known: Moment,
}

impl Connection {
    fn open(position: Position) -> Self {
        Self {
            position,
            memberships: Memberships::default(),
            phase: Phase::Between,
            writing: None,
            mailbox: VecDeque::new(),
            overflowed: false,
            routed: BTreeSet::new(),
            written: Vec::new(),
            known: 0,
        }
    }

    fn overflow(&mut self) {
        self.mailbox.clear();
        self.overflowed = true;
    }
}

struct World {
    random: StdRng,
    broken: Option<Broken>,
    next_xid: u64,
    next_id: i64,
    /// One more than the youngest transaction that has ended.
    xmax: Xid,
    open: Vec<Transaction>,
    rows: Vec<Row>,
    /// When each transaction was committed.
    commits: BTreeMap<Xid, Moment>,
    /// The number of commits.
    now: Moment,
    changes: Vec<Change>,
    /// For each topic, the memberships from each moment on.
    history: [Vec<(Moment, Option<Membership>)>; TOPICS],
    tail: Position,
    looked: (Moment, Snapshot),
    connection: Connection,
    /// The position that the connection began with.
    start: Position,
    received: BTreeMap<RowKey, usize>,
    outcome: Outcome,
}

fn topic(index: usize) -> Topic {
    Topic::parse(&format!("topic:{index}")).expect("a topic")
}

impl World {
    fn new(seed: u64, broken: Option<Broken>) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            broken,
            next_xid: 10,
            next_id: 1,
            xmax: Xid(10),
            open: Vec::new(),
            rows: Vec::new(),
            commits: BTreeMap::new(),
            now: 0,
            changes: Vec::new(),
            history: Default::default(),
            tail: Position::default(),
            looked: (0, Snapshot::new(Xid(10), vec![])),
            connection: Connection::open(Position::default()),
            start: Position::default(),
            received: BTreeMap::new(),
            outcome: Outcome::default(),
        }
    }

    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..30 => self.write(),
            30..45 => self.look(),
            45..99 => self.serve(),
            _ => self.reconnect(),
        }
    }

    // The database.

    /// As Postgres makes it: it doesn't list the transaction that takes it, and ends after
    /// the youngest transaction that has ended.
    fn snapshot(&self, own: Option<Xid>) -> Snapshot {
        let running = self.open.iter().map(|one| one.xid);
        Snapshot::new(self.xmax, running.filter(|&xid| Some(xid) != own).collect())
    }

    fn is_visible(&self, xid: Xid, at: Moment) -> bool {
        self.commits.get(&xid).is_some_and(|&commit| commit <= at)
    }

    fn membership(&self, index: usize, at: Moment) -> Option<&Membership> {
        let versions = self.history[index].iter();
        let (_, now) = versions.rev().find(|(from, _)| *from <= at)?;
        now.as_ref()
    }

    fn write(&mut self) {
        if self.open.len() < WRITERS && self.chance(40) {
            let xid = Xid(self.next_xid);
            self.next_xid += 1;
            let is_repeatable = self.chance(15);
            let snapshot = is_repeatable.then(|| (self.now, self.snapshot(Some(xid))));
            self.open.push(Transaction {
                xid,
                snapshot,
                changes: BTreeMap::new(),
            });
        }
        if self.open.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.open.len());
        match self.random.random_range(0..10) {
            0..4 => self.insert(index),
            4..6 => self.join(index),
            6 => self.leave(index),
            _ => self.end(index),
        }
    }

    fn insert(&mut self, index: usize) {
        let topic = self.random.random_range(0..=TOPICS);
        let key = RowKey {
            xid: self.open[index].xid,
            id: self.next_id,
        };
        self.next_id += 1;
        self.rows.push(Row {
            key,
            topic: (topic < TOPICS).then_some(topic),
        });
    }

    /// The topic's membership as the transaction finds it. `None` if it would wait or fail.
    fn found(&self, index: usize, topic: usize) -> Option<Option<Membership>> {
        let transaction = &self.open[index];
        if let Some(changed) = transaction.changes.get(&topic) {
            return Some(changed.clone());
        }
        if self.open.iter().any(|one| one.changes.contains_key(&topic)) {
            return None;
        }
        let now = self.membership(topic, self.now).cloned();
        // In REPEATABLE READ, only a row that was deleted since is not in the way.
        if let Some((at, _)) = &transaction.snapshot
            && now.is_some()
            && self.membership(topic, *at) != now.as_ref()
        {
            return None;
        }
        Some(now)
    }

    fn join(&mut self, index: usize) {
        let topic = self.random.random_range(0..TOPICS);
        if self.found(index, topic) != Some(None) {
            return;
        }
        let transaction = &self.open[index];
        let xid = transaction.xid;
        let since = match &transaction.snapshot {
            Some((_, snapshot)) => snapshot.clone(),
            None => self.snapshot(Some(xid)),
        };
        let joined = Membership {
            xid: Some(xid),
            since: Some(Arc::new(since)),
        };
        self.open[index].changes.insert(topic, Some(joined));
    }

    fn leave(&mut self, index: usize) {
        let topic = self.random.random_range(0..TOPICS);
        if matches!(self.found(index, topic), Some(Some(_))) {
            self.open[index].changes.insert(topic, None);
        }
    }

    fn end(&mut self, index: usize) {
        let ended = self.open.swap_remove(index);
        self.xmax = self.xmax.max(ended.xid.next());
        if self.chance(15) {
            self.rows.retain(|row| row.key.xid != ended.xid);
            return;
        }
        self.now += 1;
        self.commits.insert(ended.xid, self.now);
        for (topic, now) in ended.changes {
            self.history[topic].push((self.now, now));
            let xid = ended.xid;
            self.changes.push(Change { xid, topic });
        }
    }

    // The bridge.

    /// A membership as the bridge reads it.
    fn shown(&self, index: usize, at: Moment) -> Option<Membership> {
        let membership = self.membership(index, at)?.clone();
        Some(match (self.broken, membership.xid) {
            (Some(Broken::SinceIsXid), Some(xid)) => Membership {
                since: Some(Arc::new(Snapshot::new(xid, vec![]))),
                ..membership
            },
            _ => membership,
        })
    }

    fn has(&self, membership: &Membership, xid: Xid) -> bool {
        match self.broken {
            Some(Broken::OwnTransaction) => {
                let since = membership.since.as_ref();
                since.is_none_or(|since| !since.shows(xid))
            }
            _ => membership.has(xid),
        }
    }

    /// One statement reads the rows and the changes.
    fn look(&mut self) {
        let (at, snapshot) = (self.now, Arc::new(self.snapshot(None)));
        let (_, before) = std::mem::replace(&mut self.looked, (at, Snapshot::clone(&snapshot)));
        let told: Vec<_> = self
            .changes
            .iter()
            .filter(|change| !before.shows(change.xid))
            .map(|change| {
                let now = self.shown(change.topic, at);
                let change = MembershipChange::One {
                    user: UserId::parse("alice").expect("a user"),
                    topic: topic(change.topic),
                    xid: change.xid,
                    now,
                };
                Arc::new(change)
            })
            .collect();
        for change in told {
            if self.random.random_bool(0.2) {
                // Of some relations it isn't known what has changed.
                self.tell_any();
                continue;
            }
            let (changed, _) = parts(&change);
            let index = (0..TOPICS).find(|&one| topic(one) == *changed);
            self.tell(index.expect("a topic"), &change);
        }
        if !self.is(Broken::QueuedRowsAreKept) {
            self.connection.known = self.connection.known.max(at);
        }
        let mut rows = self.rows.clone();
        rows.retain(|row| self.is_visible(row.key.xid, at) && self.tail.is_new(row.key));
        rows.sort_by_key(|row| row.key);
        let rest = match rows.len() > TAIL_ROWS {
            true => Rest::More,
            false => Rest::Nothing,
        };
        let mut unread = Unread::default();
        if rest == Rest::More {
            let last = rows[TAIL_ROWS - 1].key;
            if last.xid == rows[TAIL_ROWS].key.xid {
                unread.add(last);
            }
            rows.truncate(TAIL_ROWS);
        }
        if let Some(last) = rows.last() {
            self.tail
                .advance(last.key, &snapshot, Follows::Other, &unread);
        }
        if rest == Rest::Nothing {
            self.tail.finish(None, &snapshot, &unread);
        }
        let routed = &self.connection.routed;
        rows.retain(|row| row.topic.is_none_or(|topic| routed.contains(&topic)));
        if !rows.is_empty() && !self.connection.overflowed {
            let tail = self.tail.clone();
            self.connection.mailbox.push_back(Batch {
                rows,
                snapshot,
                unread,
                tail,
            });
            if self.connection.mailbox.len() > MAILBOX {
                self.connection.overflow();
            }
        }
    }

    fn tell(&mut self, index: usize, change: &Arc<MembershipChange>) {
        let connection = &mut self.connection;
        let (topic, now) = parts(change);
        if let Some(now) = now {
            connection.routed.insert(index);
            match self.broken {
                Some(Broken::NoPageOnChange) => {
                    let held = connection.memberships.held.get_or_insert_default();
                    held.current.insert(topic.clone(), now.clone());
                    return;
                }
                _ => connection.overflow(),
            }
        }
        if self.broken == Some(Broken::QueuedRowsAreKept) && now.is_none() {
            return;
        }
        if self.broken == Some(Broken::OldChangesApply)
            && let Some(catch_up) = &mut connection.memberships.catch_up
        {
            catch_up.seen = Arc::default();
        }
        let position = &connection.position;
        let told = connection.memberships.told(position, change);
        told.expect("few memberships end");
    }

    fn tell_any(&mut self) {
        let connection = &mut self.connection;
        connection.overflow();
        let change = Arc::new(MembershipChange::Any { user: None });
        let told = connection.memberships.told(&connection.position, &change);
        told.expect("no membership ends");
        if self.broken == Some(Broken::OutdatedPagesAreTaken)
            && let Some(catch_up) = &mut connection.memberships.catch_up
        {
            catch_up.is_outdated = false;
        }
    }

    /// Whether the connection has to read its memberships before it passes this row.
    fn must_read_again(&self, row: Row) -> bool {
        row.topic.is_some()
            && self.connection.memberships.is_outdated()
            && !self.is(Broken::OutdatedRowsArePassed)
    }

    /// The connection's next step.
    fn serve(&mut self) {
        if let Some(writing) = self.connection.writing.take() {
            return match writing {
                Writing::Page(page, index) => self.write_page(page, index),
                Writing::Batch(batch, index) => self.write_batch(batch, index),
            };
        }
        match std::mem::replace(&mut self.connection.phase, Phase::Between) {
            Phase::Between => {
                self.connection.overflowed = false;
                let position = self.connection.position.clone();
                let wanted = self.connection.memberships.request(Some(&position));
                self.connection.phase = Phase::Requested(wanted, position);
            }
            Phase::Requested(wanted, position) => {
                let page = self.read_page(&wanted, &position);
                self.connection.phase = Phase::Read(Box::new(page));
            }
            Phase::Read(page) => self.take_page(page),
            Phase::Live => {
                if self.connection.overflowed {
                    return;
                }
                match self.connection.mailbox.pop_front() {
                    Some(batch) => self.connection.writing = Some(Writing::Batch(batch, 0)),
                    // A heartbeat.
                    None => self.connection.position.join(&self.tail),
                }
                self.connection.phase = Phase::Live;
            }
        }
    }

    /// The statement that reads a page.
    fn read_page(&self, wanted: &LateWanted, position: &Position) -> Page {
        let (at, snapshot) = (self.now, self.snapshot(None));
        let memberships: BTreeMap<usize, Membership> = (0..TOPICS)
            .filter_map(|index| Some((index, self.shown(index, at)?)))
            .collect();
        let visible = self
            .rows
            .iter()
            .filter(|row| self.is_visible(row.key.xid, at));
        let of = |row: &Row| row.topic.and_then(|topic| memberships.get(&topic));
        let is_late = |row: &Row| {
            of(row).is_some_and(|membership| {
                let begun = wanted.begun.as_ref();
                let is_of_first = self.is(Broken::LaterMembershipsJoinLatePages)
                    || begun.is_none_or(|begun| !membership.is_after(&begun.first));
                membership.is_after(&wanted.handled)
                    && is_of_first
                    && self.has(membership, row.key.xid)
                    && !position.is_new(row.key)
                    && begun.is_none_or(|begun| row.key > begun.after)
            })
        };
        let is_new = |row: &Row| {
            position.is_new(row.key)
                && (row.topic.is_none()
                    || of(row).is_some_and(|membership| self.has(membership, row.key.xid)))
        };
        let mut late: Vec<_> = visible
            .clone()
            .filter(|row| is_late(row))
            .copied()
            .collect();
        if self.is(Broken::NoLateRows) {
            late.clear();
        }
        let has_late = !late.is_empty();
        let mut rows = match has_late {
            true => late,
            false => visible.clone().filter(|row| is_new(row)).copied().collect(),
        };
        rows.sort_by_key(|row| row.key);
        let rest = match rows.len() > PAGE_ROWS {
            true => Rest::More,
            false => Rest::Nothing,
        };
        let top = visible.map(|row| row.key.xid).max();
        // One row more than the page: what follows decides whether a transaction is cut.
        rows.truncate(PAGE_ROWS + 1);
        Page {
            at,
            snapshot: Arc::new(snapshot),
            memberships: memberships
                .into_iter()
                .map(|(index, membership)| (topic(index), membership))
                .collect(),
            rows,
            rest,
            late: match has_late {
                true => LateRows::Left(rest),
                false => LateRows::None,
            },
            top,
        }
    }

    fn take_page(&mut self, page: Box<Page>) {
        let broken = self.broken;
        let connection = &mut self.connection;
        let at = page.at;
        let memberships = &mut connection.memberships;
        if broken == Some(Broken::PagesIgnoreChanges)
            && let Some(catch_up) = &mut memberships.catch_up
        {
            catch_up.told.clear();
        }
        let late = match (broken, page.late) {
            (Some(Broken::ContinuationsAreComplete), LateRows::None) => {
                memberships.finish_late(Rest::Nothing);
                LateRows::None
            }
            (_, late) => late,
        };
        let taken = memberships
            .take(
                &connection.position,
                &page.snapshot,
                page.memberships.clone(),
                late,
            )
            .expect("few memberships end");
        match broken {
            Some(Broken::EndedAreForgotten) => memberships.ended_mut().clear(),
            Some(Broken::EndedCountAsSent) => {
                memberships
                    .ended_mut()
                    .iter_mut()
                    .for_each(|one| one.late = None);
            }
            _ => {}
        }
        connection.known = connection.known.max(at);
        if taken == Taken::Write {
            connection.writing = Some(Writing::Page(page, 0));
        }
    }

    fn topics_of_connection(&self) -> BTreeSet<usize> {
        let memberships = &self.connection.memberships;
        let topics = (0..TOPICS).filter(|&index| memberships.have(&topic(index)));
        topics.collect()
    }

    /// Writes a page's next row.
    fn write_page(&mut self, page: Box<Page>, index: usize) {
        let count = page.rows.len().min(PAGE_ROWS);
        let Some(&row) = page.rows[..count].get(index) else {
            return self.finish_page(&page);
        };
        if self.must_read_again(row) {
            self.connection.phase = Phase::Between;
            return;
        }
        let key = row.key;
        let is_late = page.late != LateRows::None;
        let follows = match page.rows.get(index + 1) {
            Some(next) if next.key.xid == key.xid => Follows::SameTransaction,
            _ => Follows::Other,
        };
        let position = &mut self.connection.position;
        if !is_late || self.broken == Some(Broken::LateRowsMoveThePosition) {
            position.advance(key, &page.snapshot, follows, &Unread::NOTHING);
        }
        let wants = self.wants(row, false);
        if is_late {
            self.connection.memberships.pass_late(key);
        }
        if wants {
            self.outcome.late += usize::from(is_late);
            self.put(row);
        }
        self.connection.writing = Some(Writing::Page(page, index + 1));
    }

    fn finish_page(&mut self, page: &Page) {
        if let LateRows::Left(rest) = page.late {
            self.connection.memberships.finish_late(rest);
            return;
        }
        if page.rest == Rest::More {
            return;
        }
        let top = match self.broken {
            Some(Broken::PositionsDontPassMemberships) => page.top,
            _ => page.top.max(self.connection.memberships.top()),
        };
        let connection = &mut self.connection;
        connection
            .position
            .finish(top, &page.snapshot, &Unread::NOTHING);
        let topics = self.topics_of_connection();
        let connection = &mut self.connection;
        let are_routed = topics.is_subset(&connection.routed);
        connection.routed.extend(topics);
        // Rows of topics that were not routed may have been dropped since the page was read.
        let (_, read) = &self.looked;
        let is_complete = are_routed || page.snapshot.covers(read);
        if is_complete || self.broken == Some(Broken::RoutedAfterThePage) {
            connection.memberships.go_live();
            connection.phase = Phase::Live;
        }
    }

    /// Writes a batch's next row.
    fn write_batch(&mut self, batch: Batch, index: usize) {
        self.connection.phase = Phase::Live;
        let position = &mut self.connection.position;
        let Some(&row) = batch.rows.get(index) else {
            position.join(&batch.tail);
            return;
        };
        if position.is_new(row.key) && self.must_read_again(row) {
            self.connection.phase = Phase::Between;
            return;
        }
        let position = &mut self.connection.position;
        if position.is_new(row.key) {
            let follows = match batch.rows.get(index + 1) {
                Some(next) if next.key.xid == row.key.xid => Follows::SameTransaction,
                _ => Follows::Other,
            };
            position.advance(row.key, &batch.snapshot, follows, &batch.unread);
            if self.wants(row, true) {
                self.put(row);
            }
        }
        self.connection.writing = Some(Writing::Batch(batch, index + 1));
    }

    fn wants(&self, row: Row, is_live: bool) -> bool {
        let Some(index) = row.topic else {
            return true;
        };
        let memberships = &self.connection.memberships;
        match self.broken {
            Some(Broken::LiveRowsAreNotTested) if is_live => memberships.have(&topic(index)),
            Some(Broken::OwnTransaction) => {
                let held = memberships.held.as_ref();
                let membership = held.and_then(|held| held.current.get(&topic(index)));
                membership.is_some_and(|membership| self.has(&membership, row.key.xid))
            }
            _ => memberships.want(&topic(index), row.key, false),
        }
    }

    fn put(&mut self, row: Row) {
        self.outcome.written += 1;
        if let Some(index) = row.topic {
            let was_owed = self.history[index].iter().any(|(_, membership)| {
                let membership = membership.as_ref();
                membership.is_some_and(|membership| membership.has(row.key.xid))
            });
            self.outcome.foreign += usize::from(!was_owed);
            let known = self.looked.0.max(self.connection.known);
            let is_owed = self
                .membership(index, known)
                .is_some_and(|membership| membership.has(row.key.xid));
            self.outcome.stale += usize::from(was_owed && !is_owed);
        }
        let connection = &mut self.connection;
        let is_twice = connection.written.iter().any(|(key, _)| *key == row.key);
        self.outcome.twice += usize::from(is_twice);
        connection
            .written
            .push((row.key, connection.position.clone()));
    }

    /// The connection breaks: its client has received a part of what was written, and
    /// returns with the id of that part.
    fn reconnect(&mut self) {
        let written = std::mem::take(&mut self.connection.written);
        let unsure = written.len().min(4);
        let kept = written.len() - self.random.random_range(0..=unsure);
        // Nothing was lost on the way: the id of a heartbeat was received too.
        let position = match kept == written.len() {
            true => Some(self.connection.position.clone()),
            false => written[..kept].last().map(|(_, position)| position.clone()),
        };
        self.receive(&written[..kept]);
        let start = position.unwrap_or_else(|| self.start.clone());
        self.start = start.clone();
        self.connection = Connection::open(start);
    }

    fn receive(&mut self, written: &[(RowKey, Position)]) {
        for (key, _) in written {
            let times = self.received.entry(*key).or_default();
            *times += 1;
            self.outcome.repeated += usize::from(*times > 1);
        }
    }

    /// Ends all transactions, lets the connection catch up, and compares with the oracle.
    fn settle(mut self) -> Outcome {
        while !self.open.is_empty() {
            self.end(0);
        }
        for _ in 0..self.rows.len() + 100 {
            self.look();
            for _ in 0..20 {
                self.serve();
            }
        }
        let connection = &self.connection;
        let is_idle = connection.mailbox.is_empty() && connection.writing.is_none();
        let is_live = matches!(connection.phase, Phase::Live);
        self.outcome.stuck += usize::from(!is_idle || !is_live);
        let written = std::mem::take(&mut self.connection.written);
        self.receive(&written);
        for row in &self.rows {
            let is_owed = match row.topic {
                None => true,
                Some(index) => self
                    .membership(index, self.now)
                    .is_some_and(|membership| membership.has(row.key.xid)),
            };
            let is_lost = is_owed && !self.received.contains_key(&row.key);
            self.outcome.lost += usize::from(is_lost);
        }
        self.outcome
    }
}

/// A program is a seed and a number of steps.
const STEPS: usize = 600;
const SEEDS: std::ops::Range<u64> = 0..400;

fn run(broken: Option<Broken>, seeds: std::ops::Range<u64>) -> Outcome {
    let mut total = Outcome::default();
    for seed in seeds {
        let mut world = World::new(seed, broken);
        for _ in 0..STEPS {
            world.step();
        }
        total.add(seed, world.settle());
    }
    total
}

#[test]
fn each_row_that_is_owed_is_written_once_and_no_other() {
    let outcome = run(None, SEEDS);
    assert!(outcome.written > 20_000, "{outcome:?}");
    assert!(outcome.late > 500, "{outcome:?}");
    assert!(outcome.is_exact(), "{outcome:?}");
}

/// A rule that can be broken without a failure isn't tested.
#[test]
fn each_rule_is_needed() {
    let kept: Vec<_> = Broken::ALL
        .into_iter()
        .filter(|&broken| run(Some(broken), SEEDS).is_exact())
        .collect();
    assert_eq!(kept, Broken::NOT_PROVOKED, "nothing fails without these");
}

/// A membership of a transaction, as if all earlier ones had ended except these.
fn joined(xid: u64, running: &[u64]) -> Membership {
    Membership {
        xid: Some(Xid(xid)),
        since: Some(shows(xid, running)),
    }
}

/// A snapshot of when the transactions before `xmax` had ended except these.
fn shows(xmax: u64, running: &[u64]) -> Arc<Snapshot> {
    let running = running.iter().map(|&xid| Xid(xid));
    Arc::new(Snapshot::new(Xid(xmax), running.collect()))
}

fn row(xid: u64) -> RowKey {
    RowKey {
        xid: Xid(xid),
        id: 1,
    }
}

fn parts(change: &MembershipChange) -> (&Topic, Option<&Membership>) {
    match change {
        MembershipChange::One { topic, now, .. } => (topic, now.as_ref()),
        MembershipChange::Any { .. } => panic!("this world knows each change"),
    }
}

fn change(xid: u64, now: Option<Membership>) -> Arc<MembershipChange> {
    Arc::new(MembershipChange::One {
        user: UserId::parse("alice").expect("a user"),
        topic: topic(0),
        xid: Xid(xid),
        now,
    })
}

/// Of a connection that is live at a position, with this membership.
fn live(position: &Position, membership: &Membership) -> Memberships {
    let mut memberships = Memberships::default();
    memberships.request(Some(position));
    let found = [(topic(0), membership.clone())];
    let snapshot = Arc::new(position.as_snapshot());
    let taken = memberships.take(position, &snapshot, found, LateRows::None);
    assert_eq!(taken, Ok(Taken::Write));
    memberships.go_live();
    memberships
}

#[test]
fn rows_that_an_ended_membership_was_sent_are_not_late_rows_of_the_next() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[12]));
    let mut memberships = live(&position, &joined(5, &[]));
    // The transaction 12 has left and joined again, with a snapshot from before 15.
    let again = joined(12, &[]);
    memberships
        .told(&position, &change(12, Some(again.clone())))
        .expect("few end");
    assert!(
        !memberships.want(&topic(0), row(21), false),
        "a page adds it"
    );
    memberships.request(Some(&position));
    let (found, late) = ([(topic(0), again)], LateRows::Left(Rest::Nothing));
    let taken = memberships.take(&position, &shows(22, &[]), found, late);
    assert_eq!(taken, Ok(Taken::Write));
    assert!(!memberships.want(&topic(0), row(15), false), "it was sent");
    assert!(
        memberships.want(&topic(0), row(12), false),
        "it is of the transaction"
    );
    assert!(memberships.want(&topic(0), row(21), false));
}

#[test]
fn late_rows_that_were_not_sent_when_their_membership_ended_are_late_rows_of_the_next() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[10]));
    let mut memberships = Memberships::default();
    let first = joined(10, &[]);
    memberships.request(Some(&position));
    let (found, late) = ([(topic(0), first)], LateRows::Left(Rest::More));
    let taken = memberships.take(&position, &shows(20, &[]), found, late);
    assert_eq!(taken, Ok(Taken::Write));
    memberships.pass_late(row(15));
    memberships
        .told(&position, &change(21, None))
        .expect("few end");
    let again = Membership {
        xid: Some(Xid(22)),
        since: Some(shows(11, &[])),
    };
    memberships.request(Some(&position));
    let (found, late) = ([(topic(0), again)], LateRows::Left(Rest::Nothing));
    memberships
        .take(&position, &shows(23, &[]), found, late)
        .expect("few end");
    let wanted = [15, 16].map(|xid| memberships.want(&topic(0), row(xid), false));
    assert_eq!(wanted, [false, true]);
}

#[test]
fn a_page_that_finds_no_more_late_rows_is_read_again() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[10]));
    let mut memberships = Memberships::default();
    memberships.request(Some(&position));
    let first = shows(20, &[]);
    let late = LateRows::Left(Rest::More);
    let found = [(topic(0), joined(10, &[]))];
    memberships
        .take(&position, &first, found.clone(), late)
        .expect("few end");
    memberships.pass_late(row(15));
    memberships.finish_late(Rest::More);
    let begun = memberships.request(Some(&position)).begun;
    assert_eq!(begun.expect("it continues").after, row(15));
    let taken = memberships.take(&position, &shows(25, &[]), found, LateRows::None);
    assert_eq!(taken, Ok(Taken::ReadAgain));
    let wanted = memberships.request(Some(&position));
    assert_eq!(wanted.begun, None);
    assert_eq!(wanted.handled, *first, "not what the last page showed");
}

#[test]
fn a_change_that_a_page_is_ahead_of_changes_nothing() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[]));
    let mut memberships = Memberships::default();
    memberships.request(Some(&position));
    // The page shows that the user has left and joined again; the tail, only the first.
    let found = [(topic(0), joined(21, &[]))];
    memberships
        .take(&position, &shows(25, &[]), found, LateRows::None)
        .expect("few end");
    memberships
        .told(&position, &change(22, None))
        .expect("few end");
    assert!(memberships.have(&topic(0)));
    memberships
        .told(&position, &change(25, None))
        .expect("few end");
    assert!(!memberships.have(&topic(0)));
}

#[test]
fn a_change_that_a_page_does_not_show_is_applied_to_it() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[]));
    let mut memberships = live(&position, &joined(5, &[]));
    memberships.request(Some(&position));
    memberships
        .told(&position, &change(24, None))
        .expect("few end");
    let found = [(topic(0), joined(5, &[]))];
    memberships
        .take(&position, &shows(24, &[]), found, LateRows::None)
        .expect("few end");
    assert!(!memberships.have(&topic(0)));
}

#[test]
fn leaving_a_granted_topic_keeps_it() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[]));
    let mut memberships = Memberships::with_granted([topic(0)].into(), None);
    memberships.request(Some(&position));
    let found = [(topic(0), joined(5, &[]))];
    memberships
        .take(&position, &shows(20, &[]), found, LateRows::None)
        .expect("few end");
    memberships.go_live();
    memberships
        .told(&position, &change(21, None))
        .expect("few end");
    assert!(memberships.want(&topic(0), row(22), false));
}

#[test]
fn what_is_remembered_of_ended_memberships_is_bounded() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[]));
    let mut memberships = live(&position, &joined(5, &[]));
    let mut ended = Ok(());
    for xid in 0..=ENDED_MEMBERSHIPS as u64 {
        assert_eq!(ended, Ok(()));
        memberships.request(Some(&position));
        let found = [(topic(0), joined(20 + xid, &[]))];
        let taken = memberships.take(&position, &shows(21 + xid, &[]), found, LateRows::None);
        ended = taken.map(|_| ());
    }
    assert_eq!(ended, Err(TooManyEnded));
}

#[test]
fn while_any_membership_may_have_ended_rows_wait_for_a_page_that_was_requested_later() {
    let position = Position::after(Some(Xid(19)), &shows(20, &[]));
    let membership = joined(5, &[]);
    let mut memberships = live(&position, &membership);
    let any = Arc::new(MembershipChange::Any { user: None });
    assert_eq!(memberships.told(&position, &any), Ok(()));
    assert!(memberships.is_outdated());
    memberships.request(Some(&position));
    // Once more, while the page is read.
    assert_eq!(memberships.told(&position, &any), Ok(()));
    let found = || [(topic(0), membership.clone())];
    let snapshot = shows(22, &[]);
    let taken = memberships.take(&position, &snapshot, found(), LateRows::None);
    assert_eq!(taken, Ok(Taken::ReadAgain));
    assert!(memberships.is_outdated());
    memberships.request(Some(&position));
    let taken = memberships.take(&position, &snapshot, found(), LateRows::None);
    assert_eq!(taken, Ok(Taken::Write));
    assert!(!memberships.is_outdated() && memberships.want(&topic(0), row(21), false));
    // Nothing has ended, so nothing has to be remembered.
    assert!(memberships.held.is_some_and(|held| held.ended.is_empty()));
}
