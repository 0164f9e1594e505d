//! Simulates a table, the bridge's tail and streams without any I/O. Pages are small, so
//! transactions are constantly read in pieces; streams lag, overflow, and break in the
//! middle of a batch. Some of what the bridge reads, it takes from messages of two other
//! bridges, which get lost, come twice, late, and in any order. Each row must be delivered
//! exactly once.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;

use crate::{
    delivery::{
        batch::{Batch, End, Event},
        recent_rows::RecentRows,
    },
    domain::{
        history::History,
        notification::{Addressee, Expiry, Notification, UserId},
        position::{
            EventId, Position, ReadPoint, ReadStep, Rest, RowKey, StepWorth, TopicScope, Unread,
        },
        snapshot::{Snapshot, Xid},
    },
};

const WRITERS: usize = 4;

/// The user of each stream.
const STREAMS: [usize; 3] = [0, 0, 1];

const USERS: usize = 3;

/// Consecutive rows of one user within a transaction, before rows of the next user
/// follow.
const USER_ROWS: usize = 6;

const TAIL_ROWS: usize = 4;
const BESIDE_ROWS: usize = 2;
const MOST_BEGUN: usize = 2;
const PAGE_ROWS: usize = 2;
const MAILBOX_BATCHES: usize = 2;

/// Bridges that read the table for others, at the same time.
const FEEDERS: usize = 2;

/// Some twenty rows.
const RECENT_BYTES: usize = 20 * (Event::MEMORY + 160);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Writer, rows in its transaction, first user. The users take turns.
    Insert(usize, usize, usize),
    Commit(usize),
    RollBack(usize),
    ReadTail,
    /// A stream takes so many steps: each writes a row or fetches the next batch.
    Write(usize, usize),
    /// A stream breaks, and its client reconnects with its last id. Its page is one of
    /// recent rows, if that is wanted and possible.
    Break(usize, Wants),
    Heartbeat(usize),
    /// A feeder reads a page, and sends it, or only counts it as sent.
    Feed(usize, Sends),
    /// One of the messages that are on their way arrives, and may arrive again.
    Arrive(prop::sample::Index, Arrives),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    Something,
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrives {
    Once,
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    RecentRows,
    Query,
}

fn step() -> impl Strategy<Value = Step> {
    let (writer, stream) = (0..WRITERS, 0..STREAMS.len());
    prop_oneof![
        6 => (writer.clone(), 1..14usize, 0..USERS)
            .prop_map(|(writer, rows, user)| Step::Insert(writer, rows, user)),
        4 => writer.clone().prop_map(Step::Commit),
        1 => writer.prop_map(Step::RollBack),
        8 => Just(Step::ReadTail),
        12 => (stream.clone(), 1..12usize).prop_map(|(stream, times)| Step::Write(stream, times)),
        3 => (stream.clone(), prop::sample::select(vec![Wants::RecentRows, Wants::Query]))
            .prop_map(|(stream, wants)| Step::Break(stream, wants)),
        1 => stream.prop_map(Step::Heartbeat),
        8 => (0..FEEDERS, prop::sample::select(vec![Sends::Something, Sends::Something, Sends::Nothing]))
            .prop_map(|(feeder, sends)| Step::Feed(feeder, sends)),
        8 => (any::<prop::sample::Index>(), prop::sample::select(vec![Arrives::Once, Arrives::Again]))
            .prop_map(|(which, arrives)| Step::Arrive(which, arrives)),
    ]
}

/// Some runs of rows can't be delivered.
fn is_usable(row: RowKey) -> bool {
    row.id / 3 % 5 != 0
}

#[derive(Default)]
struct Table {
    rows: Vec<(RowKey, usize)>,
    running: BTreeSet<Xid>,
    aborted: BTreeSet<Xid>,
    xids: u64,
}

impl Table {
    fn snapshot(&self) -> Snapshot {
        Snapshot::new(Xid(self.xids + 1), self.running.iter().copied().collect())
    }

    fn visible(&self) -> Vec<(RowKey, usize)> {
        let is_visible = |xid| !self.running.contains(xid) && !self.aborted.contains(xid);
        let rows = self.rows.iter().filter(|(row, _)| is_visible(&row.xid));
        let mut rows: Vec<_> = rows.copied().collect();
        rows.sort_unstable();
        rows
    }
}

struct Stream {
    user: usize,
    position: Position,
    current: Option<(Arc<Batch>, usize)>,
    mailbox: VecDeque<Arc<Batch>>,
    has_overflowed: bool,
    is_catching_up: bool,
    wants: Wants,
    got: Vec<RowKey>,
}

/// Rows that were read at once, and what that left.
#[derive(Clone)]
struct SimulatedRun {
    rows: Vec<(RowKey, usize)>,
    after: Position,
    unread: Unread,
}

/// A page that another bridge has read.
#[derive(Clone)]
struct SimulatedMessage {
    step: ReadStep,
    runs: Vec<SimulatedRun>,
}

#[derive(Clone, Default)]
struct Feeder {
    tail: Position,
    sent_through: ReadPoint,
}

struct Simulation {
    feeders: [Feeder; FEEDERS],
    messages: Vec<SimulatedMessage>,
    /// Messages that were applied, so far.
    applied: usize,
    /// The snapshot of the last page, read or received.
    known: Arc<Snapshot>,
    recent: RecentRows,
    /// Pages of recent rows, so far.
    recent_pages: usize,
    table: Table,
    writers: [Option<Xid>; WRITERS],
    tail: Position,
    streams: Vec<Stream>,
}

fn user(number: usize) -> UserId {
    UserId::parse(&number.to_string()).expect("a user")
}

fn event(key: RowKey) -> Event {
    Event::from(Notification {
        key,
        event: None,
        text: String::new(),
        created_at: None,
        expires: Expiry::Never,
        reference: None,
        topic: None,
    })
}

fn batch(rows: &[RowKey], snapshot: &Snapshot, unread: &Unread, end: End) -> Batch {
    Batch {
        events: rows.iter().copied().map(event).map(Arc::new).collect(),
        snapshot: Arc::new(snapshot.clone()),
        unread: Arc::new(unread.clone()),
        last: None,
        end,
    }
}

/// Does what `sql/tail_page.sql` and `page_reader.rs` do, with other sizes.
fn read(table: &Table, tail: &mut Position) -> (Vec<SimulatedRun>, Rest) {
    let snapshot = table.snapshot();
    let mut new = table.visible();
    new.retain(|&(row, _)| tail.is_new(row));
    let begun = tail.begun();
    let share = (TAIL_ROWS / begun.len().max(1)).max(1);
    let most = match begun.len() {
        0 => TAIL_ROWS,
        1..MOST_BEGUN => BESIDE_ROWS,
        _ => 0,
    };
    let (of_begun, others): (Vec<_>, Vec<_>) = new
        .into_iter()
        .partition(|(row, _)| begun.xids().contains(&row.xid));

    let (mut first, mut cut) = (Vec::new(), Unread::NOTHING);
    for rows in of_begun.chunk_by(|(a, _), (b, _)| a.xid == b.xid) {
        first.extend(&rows[..share.min(rows.len())]);
        if rows.len() > share {
            cut.add(rows[share - 1].0);
        }
    }
    let is_all = cut.is_empty();
    let unread = tail.pass_begun(&cut);
    let first = SimulatedRun {
        rows: first,
        after: tail.clone(),
        unread,
    };

    let (read, left) = others.split_at(most.min(others.len()));
    let last = read.last().map(|&(row, _)| row);
    let cut = match (last, left.first()) {
        (Some(last), Some((next, _))) if last.xid == next.xid => Unread::after(last),
        _ => Unread::NOTHING,
    };
    let rest = match left {
        [] => Rest::Nothing,
        _ => Rest::More,
    };
    let unread = tail.pass_others(last, &cut, rest, &snapshot);
    // A message may have brought more than one reader begins.
    assert!(tail.begun().len() <= begun.len().max(MOST_BEGUN));
    let second = SimulatedRun {
        rows: read.to_vec(),
        after: tail.clone(),
        unread,
    };
    (vec![first, second], if is_all { rest } else { Rest::More })
}

impl Simulation {
    fn new() -> Self {
        let stream = |user| Stream {
            user,
            position: Position::default(),
            current: None,
            mailbox: VecDeque::new(),
            has_overflowed: false,
            is_catching_up: false,
            wants: Wants::Query,
            got: Vec::new(),
        };
        let recent = RecentRows::new(RECENT_BYTES);
        recent.begin(History::default(), &Arc::default());
        Self {
            feeders: Default::default(),
            messages: Vec::new(),
            applied: 0,
            known: Arc::default(),
            recent,
            recent_pages: 0,
            table: Table::default(),
            writers: [None; WRITERS],
            tail: Position::default(),
            streams: STREAMS.into_iter().map(stream).collect(),
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Insert(writer, rows, user) => {
                let table = &mut self.table;
                let xid = *self.writers[writer].get_or_insert_with(|| {
                    table.xids += 1;
                    Xid(table.xids)
                });
                table.running.insert(xid);
                for row in 0..rows {
                    let id = table.rows.len() as i64 + 1;
                    let user = (user + row / USER_ROWS) % USERS;
                    table.rows.push((RowKey { xid, id }, user));
                }
            }
            Step::Commit(writer) => {
                if let Some(xid) = self.writers[writer].take() {
                    self.table.running.remove(&xid);
                }
            }
            Step::RollBack(writer) => {
                if let Some(xid) = self.writers[writer].take() {
                    self.table.running.remove(&xid);
                    self.table.aborted.insert(xid);
                }
            }
            Step::ReadTail => {
                self.read_tail();
            }
            Step::Write(stream, times) => {
                for _ in 0..times {
                    self.write(stream);
                }
            }
            Step::Break(stream, wants) => {
                let history = History::default();
                let stream = &mut self.streams[stream];
                let id = EventId {
                    scope: TopicScope::Whole,
                    row: 1,
                    history,
                    position: Cow::Borrowed(&stream.position),
                    safe: stream.position.floor(),
                };
                let id = EventId::parse(&id.to_string(), history).expect("an id of ours");
                stream.position = id.position.into_owned();
                (stream.current, stream.has_overflowed) = (None, false);
                stream.mailbox.clear();
                stream.is_catching_up = true;
                stream.wants = wants;
            }
            Step::Heartbeat(stream) => {
                let stream = &mut self.streams[stream];
                let is_idle = stream.current.is_none() && stream.mailbox.is_empty();
                if is_idle && !stream.has_overflowed && !stream.is_catching_up {
                    stream.position.join(&self.tail);
                }
            }
            Step::Feed(feeder, sends) => {
                let feeder = &mut self.feeders[feeder];
                let (runs, _) = read(&self.table, &mut feeder.tail);
                let after = ReadPoint {
                    position: Arc::new(feeder.tail.clone()),
                    snapshot: Arc::new(self.table.snapshot()),
                };
                let before = std::mem::replace(&mut feeder.sent_through, after.clone());
                if sends == Sends::Something {
                    let step = ReadStep { before, after };
                    self.messages.push(SimulatedMessage { step, runs });
                }
            }
            Step::Arrive(which, arrives) if !self.messages.is_empty() => {
                let which = which.index(self.messages.len());
                let message = match arrives {
                    Arrives::Once => self.messages.remove(which),
                    Arrives::Again => self.messages[which].clone(),
                };
                self.receive(message);
            }
            Step::Arrive(..) => {}
        }
    }

    fn read_tail(&mut self) -> Rest {
        let snapshot = self.table.snapshot();
        let (runs, rest) = read(&self.table, &mut self.tail);
        self.publish_all(runs, &snapshot);
        rest
    }

    fn publish_all(&mut self, runs: Vec<SimulatedRun>, snapshot: &Snapshot) {
        for run in runs {
            self.tail = run.after;
            self.publish(&run.rows, snapshot, &run.unread);
        }
        self.known = Arc::new(snapshot.clone());
    }

    /// Does what `listener/publisher.rs` does. After a gap, the bridge reads the table.
    fn receive(&mut self, message: SimulatedMessage) {
        let point = ReadPoint {
            position: Arc::new(self.tail.clone()),
            snapshot: Arc::clone(&self.known),
        };
        match message.step.worth_to(&point) {
            StepWorth::Seen => {}
            StepWorth::Gap => while self.read_tail() == Rest::More {},
            StepWorth::Follows => {
                let (mut tail, mut runs) = (self.tail.clone(), message.runs);
                for run in &mut runs {
                    run.rows.retain(|&(row, _)| tail.is_new(row));
                    tail.join(&run.after);
                    run.after = tail.clone();
                }
                self.publish_all(runs, &message.step.after.snapshot);
                self.applied += 1;
            }
        }
    }

    /// Does what the hub does.
    fn publish(&mut self, rows: &[(RowKey, usize)], snapshot: &Snapshot, unread: &Unread) {
        let tail = Arc::new(self.tail.clone());
        let usable = rows.iter().filter(|(row, _)| is_usable(*row));
        let recent: Vec<_> = usable
            .map(|&(row, of)| (Addressee::User(user(of)), Arc::new(event(row))))
            .collect();
        self.recent.add(&recent, &tail);
        for stream in &mut self.streams {
            let rows: Vec<_> = rows
                .iter()
                .filter(|(row, user)| *user == stream.user && is_usable(*row))
                .map(|&(row, _)| row)
                .collect();
            if rows.is_empty() || stream.has_overflowed {
                continue;
            }
            if stream.mailbox.len() == MAILBOX_BATCHES {
                stream.mailbox.clear();
                stream.has_overflowed = true;
                continue;
            }
            let end = End::Live(Arc::clone(&tail));
            let batch = batch(&rows, snapshot, unread, end);
            stream.mailbox.push_back(Arc::new(batch));
        }
    }

    /// Does what `stream.rs` does. Returns false if there is nothing to do.
    fn write(&mut self, stream: usize) -> bool {
        let stream = &mut self.streams[stream];
        if let Some((batch, index)) = stream.current.take() {
            let Some(event) = batch.events.get(index) else {
                batch.finish(&mut stream.position);
                if let End::CaughtUp { .. } | End::Recent(_) = batch.end {
                    stream.is_catching_up = false;
                }
                return true;
            };
            let row = event.notification().key;
            if stream.position.is_new(row) {
                batch.advance(&mut stream.position, index);
                stream.got.push(row);
                assert!(!stream.position.is_new(row));
            }
            let open = stream.position.open_xids();
            assert!(open.iter().all(|&xid| xid < stream.position.floor()));
            stream.current = Some((batch, index + 1));
        } else if stream.is_catching_up || stream.has_overflowed {
            stream.is_catching_up = true;
            stream.has_overflowed = false;
            if stream.wants == Wants::RecentRows {
                let page =
                    self.recent
                        .page(&user(stream.user), History::default(), &stream.position);
                if let Some(page) = page {
                    self.recent_pages += 1;
                    stream.current = Some((Arc::new(page), 0));
                    return true;
                }
            }
            let mut new = self.table.visible();
            new.retain(|&(row, user)| user == stream.user && stream.position.is_new(row));
            let new: Vec<_> = new.into_iter().map(|(row, _)| row).collect();
            let (read, left) = new.split_at(PAGE_ROWS.min(new.len()));
            let unread = match (read.last(), left.first()) {
                (Some(&last), Some(next)) if last.xid == next.xid => Unread::after(last),
                _ => Unread::NOTHING,
            };
            let end = match left {
                [] => End::CaughtUp { top: None },
                _ => End::MorePages,
            };
            let usable = read.iter().copied().filter(|&row| is_usable(row));
            let usable: Vec<_> = usable.collect();
            let mut page = batch(&usable, &self.table.snapshot(), &unread, end);
            page.last = read.last().copied();
            stream.current = Some((Arc::new(page), 0));
        } else if let Some(batch) = stream.mailbox.pop_front() {
            stream.current = Some((batch, 0));
        } else {
            return false;
        }
        true
    }

    fn finish(&mut self) {
        for writer in 0..WRITERS {
            self.play(Step::Commit(writer));
        }
        let mut left = self.table.rows.len() + 100;
        while self.read_tail() == Rest::More {
            left -= 1;
            assert!(left > 0, "the tail comes to no end");
        }
        for stream in 0..STREAMS.len() {
            let mut left = 20 * self.table.rows.len() + 100;
            while self.write(stream) {
                left -= 1;
                assert!(left > 0, "it comes to no end");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_row_comes_once_although_transactions_are_read_in_pieces(
        steps in prop::collection::vec(step(), 1..150)
    ) {
        let mut bridge = Simulation::new();
        for step in steps {
            bridge.play(step);
        }
        bridge.finish();
        prop_assert!(bridge.tail.begun().is_empty());
        for stream in &bridge.streams {
            let visible = bridge.table.visible();
            let owed = visible
                .iter()
                .filter(|(row, user)| *user == stream.user && is_usable(*row));
            let owed: Vec<_> = owed.map(|&(row, _)| row).collect();
            let mut got = stream.got.clone();
            got.sort_unstable();
            prop_assert_eq!(got, owed);
            let mut last_of = BTreeMap::new();
            for row in &stream.got {
                let before = last_of.insert(row.xid, row.id);
                prop_assert!(before < Some(row.id), "not in the order of ids: {:?}", stream.got);
            }
        }
    }
}
