//! Publishes what was read from the tail, here or by another bridge, and remembers up to
//! where.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::warn;

use crate::{
    delivery::{
        counters::Counters,
        feed::{
            Received,
            message::{FeedMessage, FeedRun},
        },
        hub::{Hub, Reading, Tail},
        mailbox::Recovery,
        memberships::MembershipChange,
        page_reader::{TailStart, UnusableRows},
        recently_published::Remembered,
    },
    domain::{
        durable_floor::{DurableFloor, Log},
        history::History,
        position::{Position, ReadPoint, StepWorth},
        snapshot::{Snapshot, Xid},
    },
    runtime::log_throttle::LogThrottle,
};

#[derive(Debug)]
pub struct Publisher {
    hub: Arc<Hub>,
    activity: Arc<Counters>,
    history: History,
    position: Position,
    /// The snapshot of the last statement, whose memberships were passed on.
    known: Arc<Snapshot>,
    safe: DurableFloor,
    /// The log as of the last statement.
    log: Option<Log>,
    remembered: Remembered,
    unusable: LogThrottle,
}

/// What one statement has read of the tail.
#[derive(Debug)]
pub struct TailRead {
    pub changes: Vec<Arc<MembershipChange>>,
    pub runs: Vec<FeedRun>,
    pub snapshot: Arc<Snapshot>,
    pub log: Log,
}

impl Publisher {
    pub fn new(hub: Arc<Hub>, activity: Arc<Counters>) -> Self {
        Self {
            hub,
            activity,
            history: History::default(),
            position: Position::default(),
            known: Arc::default(),
            safe: DurableFloor::new(Xid::default()),
            log: None,
            remembered: Remembered::default(),
            unusable: LogThrottle::default(),
        }
    }

    pub fn history(&self) -> History {
        self.history
    }

    /// What was read and published.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The snapshot whose memberships were published.
    pub fn known(&self) -> &Snapshot {
        &self.known
    }

    /// The state of the log when the last statement was read.
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    /// How far everything was published.
    pub fn point(&self) -> ReadPoint {
        ReadPoint {
            position: Arc::new(self.position.clone()),
            snapshot: Arc::clone(&self.known),
        }
    }

    pub fn tail(&self) -> Tail {
        Tail {
            history: self.history,
            position: Arc::new(self.position.clone()),
            safe: self.safe.xid(),
        }
    }

    /// Another history begins. Rows that are visible now are not published.
    pub fn begin(&mut self, history: History, start: TailStart) {
        self.position = start.position;
        self.known = Arc::new(start.snapshot);
        self.safe = DurableFloor::new(start.checkpointed);
        self.log = None;
        self.remembered = Remembered::default();
        self.history = history;
        self.hub.start(self.tail());
        if start.has_topics {
            self.hub.use_topics();
        }
    }

    /// Handles a crash of Postgres. Everything that was read has been published; what was
    /// not on disk is read again. Rows that turn out to be the same are recognized by
    /// `remembered`. Returns the durable floor.
    pub fn recover(&mut self, history: History) -> Xid {
        let safe = self.safe.xid();
        warn!(
            safe = safe.0,
            "Postgres has recovered from a crash, rereading what was not on disk before it"
        );
        self.safe.crashed();
        self.log = None;
        self.position.fall_to(safe);
        Arc::make_mut(&mut self.known).fall_to(safe);
        self.history = history;
        let recovery = Recovery {
            history,
            safe,
            published: Arc::new(self.remembered.clone()),
        };
        self.hub.recover(recovery, self.tail());
        safe
    }

    /// A reader of this cluster has read up to this floor, when the log was in this state.
    pub fn read_up_to(&mut self, floor: Xid, log: Log) {
        self.safe.read_up_to(floor, log);
    }

    /// Publishes what a statement has read that began at [`position`](Self::position).
    pub fn publish(&mut self, read: TailRead) {
        let mut changes = read.changes;
        self.activity.memberships_changed(changes.len());
        for run in read.runs {
            self.position = run.after;
            self.safe.read_up_to(self.position.floor(), read.log);
            let mut notifications = run.rows;
            let remembered = &mut self.remembered;
            notifications.retain(|(_, notification)| remembered.is_news(notification));
            let of_topics = notifications.iter();
            let of_topics = of_topics.filter(|(to, _)| to.topic().is_some()).count();
            self.activity.read(notifications.len(), of_topics);
            self.hub.publish(Reading {
                changes: std::mem::take(&mut changes),
                notifications,
                snapshot: Arc::clone(&read.snapshot),
                unread: Arc::new(run.unread),
                tail: self.tail(),
            });
        }
        self.known = read.snapshot;
        self.log = Some(read.log);
        self.remembered.forget_below(self.safe.xid());
    }

    /// Publishes what is new of what another bridge has read, if nothing before it is
    /// missing.
    ///
    /// Its snapshot shows everything that this bridge has seen, so it is as if this bridge
    /// had polled at that moment.
    pub fn receive(&mut self, message: FeedMessage) -> Received {
        if message.history != self.history {
            return Received::OtherHistory;
        }
        match message.step.worth_to(&self.point()) {
            StepWorth::Seen => return Received::Seen,
            StepWorth::Gap => return Received::Gap,
            StepWorth::Follows => {}
        }
        let snapshot = message.step.after.snapshot;
        let (mut rows, mut runs) = (0, message.runs);
        let mut position = self.position.clone();
        for run in &mut runs {
            run.rows.retain(|(_, row)| position.is_new(row.key));
            rows += run.rows.len();
            position.join(&run.after);
            run.after = position.clone();
        }
        // The feeder moves on without rows, too, when transactions end.
        position.join(&message.step.after.position);
        runs.push(FeedRun {
            rows: Vec::new(),
            unread: position.begun(),
            after: position,
        });
        self.publish(TailRead {
            changes: message.changes,
            runs,
            snapshot,
            log: message.log,
        });
        Received::Applied(rows)
    }

    /// Warns of rows that were skipped, throttled.
    pub fn warn_of(&self, unusable: UnusableRows) {
        let Some((row, flaw)) = unusable.first else {
            return;
        };
        if let Some(count) = self.unusable.add(unusable.count, Instant::now().into_std()) {
            let row = row.id;
            warn!(
                count, row, reason = %flaw,
                "skipped {count} rows of the table notifications that can't be delivered, such as \
                 the one with id {row}: {flaw}; correct or delete such rows, and restore the \
                 table's check constraints, which reject them"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        delivery::feed::role::Sign,
        domain::{
            clock::Moment,
            history::{Incarnation, Since},
            notification::{Addressee, Expiry, Notification, UserId},
            position::{ReadStep, RowKey, Unread},
        },
    };

    fn history(since: i64) -> History {
        History {
            system_identifier: 1,
            incarnation: Incarnation {
                timeline: 1,
                since: Since(since),
            },
        }
    }

    fn point(xid: u64) -> ReadPoint {
        let snapshot = Snapshot::new(Xid(xid + 1), Vec::new());
        ReadPoint {
            position: Arc::new(Position::after(Some(Xid(xid)), &snapshot)),
            snapshot: Arc::new(snapshot),
        }
    }

    /// A bridge that has read the transactions up to 4.
    fn publisher() -> Publisher {
        let hub = Arc::new(Hub::new(1_024));
        let mut publisher = Publisher::new(hub, Arc::default());
        let at = point(4);
        publisher.begin(
            history(1),
            TailStart {
                position: (*at.position).clone(),
                snapshot: (*at.snapshot).clone(),
                checkpointed: Xid(1),
                has_topics: false,
            },
        );
        publisher
    }

    /// What a feeder has read between these two transactions: a row of each.
    fn message(history: History, from: u64, to: u64) -> FeedMessage {
        let user = UserId::parse("alice").expect("a user");
        let row = |xid: u64| {
            let notification = Notification {
                key: RowKey {
                    xid: Xid(xid),
                    id: xid.cast_signed(),
                },
                event: None,
                text: "x".to_owned(),
                created_at: None,
                expires: Expiry::Never,
                reference: None,
                topic: None,
            };
            (Addressee::User(user.clone()), notification)
        };
        FeedMessage {
            history,
            step: ReadStep {
                before: point(from),
                after: point(to),
            },
            log: Log {
                inserted: 100.into(),
                flushed: 100.into(),
            },
            sign: Sign::Feeds,
            sent: Moment(0),
            changes: Vec::new(),
            runs: vec![FeedRun {
                rows: (from + 1..=to).map(row).collect(),
                after: (*point(to).position).clone(),
                unread: Unread::NOTHING,
            }],
        }
    }

    #[test]
    fn what_is_new_in_a_message_is_published_once() {
        let mut publisher = publisher();
        // The bridge has seen its first two rows.
        let read = message(history(1), 2, 6);
        assert_eq!(publisher.receive(read.clone()), Received::Applied(2));
        assert_eq!(publisher.position(), &*point(6).position);
        assert_eq!(publisher.known(), &*point(6).snapshot);
        assert_eq!(publisher.tail().safe, Xid(7));
        assert_eq!(publisher.receive(read), Received::Seen);
        assert_eq!(
            publisher.receive(message(history(1), 6, 7)),
            Received::Applied(1)
        );
    }

    #[test]
    fn a_message_after_a_gap_moves_nothing() {
        let mut publisher = publisher();
        assert_eq!(publisher.receive(message(history(1), 5, 6)), Received::Gap);
        assert_eq!(publisher.position(), &*point(4).position);
    }

    #[test]
    fn messages_of_another_incarnation_are_dropped() {
        let mut publisher = publisher();
        let late = message(history(0), 4, 6);
        assert_eq!(publisher.receive(late), Received::OtherHistory);
        assert_eq!(publisher.position(), &*point(4).position);
        // Also after a crash that this bridge has noticed.
        publisher.recover(history(2));
        let late = message(history(1), 1, 6);
        assert_eq!(publisher.receive(late), Received::OtherHistory);
        assert_eq!(
            publisher.receive(message(history(2), 0, 6)),
            Received::Applied(6)
        );
    }
}
