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
