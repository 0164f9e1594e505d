//! The listener's part in sharing what bridges read: one of them, the *feeder*, polls the
//! table and sends what it finds to the others, which follow it instead of polling.
//!
//! Messages are only a faster way to rows. A message says which rows precede it, and a
//! follower that lacks any of them polls, as does one that hears nothing. The lock that
//! elects the feeder saves work and protects nothing: two feeders cost twice as much, and
//! change nothing else.

pub mod message;
pub mod role;

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::{
    message::FeedMessage,
    role::{FeedRole, FeedWatch, Sign},
};
use crate::{
    domain::{clock::Moment, position::ReadPoint},
    fanout::{
        Assembler, FeedKeys, FeedLink, LinkState, Parcel, SealError, TooLong, UnreadableMessage,
    },
    runtime::log_throttle::LogThrottle,
};

/// Whether this bridge may become the feeder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedPolicy {
    Auto,
    Never,
}

/// Which table is read: bridges of different tables must not share messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedPlace {
    pub system_identifier: i64,
    /// The object identifiers of the database and of the table.
    pub database: u32,
    pub table: u32,
}

impl FeedPlace {
    /// The subject without its last part, which says what a message is for.
    pub fn subject(self) -> String {
        let Self {
            system_identifier,
            database,
            table,
        } = self;
        let cluster = system_identifier.cast_unsigned();
        format!("tidings.1.{cluster}.{database}.{table}")
    }
}

/// What is known about sharing, for metrics and the operator's page.
#[derive(Debug, Default)]
pub struct FeedStats {
    role: AtomicU8,
    link: AtomicU8,
    subject: Mutex<Option<Arc<str>>>,
    sent: AtomicU64,
    unsent: AtomicU64,
    seen: AtomicU64,
    applied: AtomicU64,
    gaps: AtomicU64,
    rejected: AtomicU64,
    rows: AtomicU64,
}

/// The figures, named in JSON as on the operator's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FeedFigures {
    pub role: FeedRole,
    /// Whether the bridge is connected to NATS.
    pub connected: bool,
    pub subject: Option<Arc<str>>,
    /// Messages that this bridge sent, and those that it could not send.
    pub sent: u64,
    pub unsent: u64,
    /// Messages by what was done with them.
    pub seen: u64,
    pub applied: u64,
    pub gaps: u64,
    pub rejected: u64,
    /// Rows that were taken from messages.
    pub rows: u64,
}

impl FeedStats {
    pub fn figures(&self) -> FeedFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let role = usize::from(self.role.load(Ordering::Relaxed));
        FeedFigures {
            role: FeedRole::ALL.get(role).copied().unwrap_or_default(),
            connected: self.link.load(Ordering::Relaxed) > 0,
            subject: self.subject.lock().clone(),
            sent: load(&self.sent),
            unsent: load(&self.unsent),
            seen: load(&self.seen),
            applied: load(&self.applied),
            gaps: load(&self.gaps),
            rejected: load(&self.rejected),
            rows: load(&self.rows),
        }
    }

    fn set(&self, role: FeedRole, link: LinkState) {
        self.role.store(role as u8, Ordering::Relaxed);
        let is_connected = link == LinkState::Connected;
        self.link.store(is_connected.into(), Ordering::Relaxed);
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What was done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Nothing in it was new.
    Seen,
    /// This many rows were published.
    Applied(usize),
    /// Something before it is missing.
    Gap,
    /// It is of another history.
    OtherHistory,
}

/// A message that is not a page of this table.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error(transparent)]
    Unreadable(#[from] UnreadableMessage),
    #[error(transparent)]
    Undecodable(#[from] message::Undecodable),
}

/// A message that could not be sent.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[derive(Debug)]
pub struct Feed {
    link: FeedLink,
    policy: FeedPolicy,
    stats: Arc<FeedStats>,
    subject: Arc<str>,
    /// Without them, nothing is sent or received.
    keys: Option<FeedKeys>,
    /// Whether that was logged.
    lacks_keys: bool,
    assembler: Assembler,
    watch: FeedWatch,
    /// This bridge, among the senders.
    id: u64,
    /// The number of the last message that was sent.
    number: u64,
    /// Up to where the messages that were sent tell everything.
    sent_through: ReadPoint,
    rejections: LogThrottle,
    failures: LogThrottle,
}

impl Feed {
    pub fn new(link: FeedLink, policy: FeedPolicy, stats: Arc<FeedStats>) -> Self {
        let now = Instant::now();
        Self {
            link,
            policy,
            stats,
            subject: Arc::from(""),
            keys: None,
            lacks_keys: false,
            assembler: Assembler::default(),
            watch: FeedWatch::new(now),
            id: rand::random(),
            number: 0,
            sent_through: ReadPoint::default(),
            rejections: LogThrottle::default(),
            failures: LogThrottle::default(),
        }
    }

    /// A session begins. The lock of the previous one is gone.
    pub fn begin(&mut self, place: FeedPlace) {
        let subject = format!("{}.rows", place.subject());
        if *subject != *self.subject {
            info!(%subject, "bridges of this table exchange messages on {subject}");
            self.subject = subject.into();
            self.link.set_subject(&self.subject);
            *self.stats.subject.lock() = Some(Arc::clone(&self.subject));
        }
        self.be_alone();
    }

    /// `None` if there are no keys, or this role may not read them.
    pub fn set_keys(&mut self, keys: Option<FeedKeys>) {
        if keys.is_none() && !std::mem::replace(&mut self.lacks_keys, true) {
            warn!(
                "the table tidings_feed_keys can't be read or is empty, so this bridge polls for \
                 itself: `tidings check` prints a missing GRANT, and `select rotate_feed_key()` \
                 creates a key"
            );
        }
        self.lacks_keys &= keys.is_none();
        self.keys = keys;
    }

    pub fn role(&self) -> FeedRole {
        self.watch.role()
    }

    fn report(&self) {
        self.stats.set(self.watch.role(), self.link.state());
    }

    /// Whether to try to become the feeder now.
    pub fn tries_to_feed(&mut self, now: Instant) -> bool {
        self.report();
        let may_feed = self.policy == FeedPolicy::Auto
            && self.keys.is_some()
            && self.link.state() == LinkState::Connected;
        may_feed && self.watch.tries(now)
    }

    /// This bridge holds the lock, and has read up to here.
    pub fn feed_from(&mut self, point: ReadPoint) {
        info!("this bridge reads the table for the others now");
        self.watch.feeds(Instant::now());
        self.sent_through = point;
        self.report();
    }

    /// Whether the feeder has to give up because it can't send.
    pub fn must_resign(&self) -> bool {
        self.watch.role() == FeedRole::Feeding
            && (self.link.state() != LinkState::Connected || self.keys.is_none())
    }

    pub fn resign(&mut self) {
        warn!("this bridge can't send to the others, and leaves reading the table to them");
        self.watch.resigns(Instant::now());
        self.report();
    }

    pub fn be_alone(&mut self) {
        self.watch.is_alone(Instant::now());
        self.report();
    }

    /// Where the next message has to begin.
    pub fn sent_through(&self) -> &ReadPoint {
        &self.sent_through
    }

    /// Sends a message that begins at [`sent_through`](Self::sent_through).
    pub fn send(&mut self, message: &FeedMessage, now: Instant) {
        // Whether or not it arrives: the next one doesn't repeat it.
        self.sent_through = message.step.after.clone();
        self.watch.tried_to_send(now);
        match self.try_send(message, now) {
            Ok(true) => count(&self.stats.sent),
            Ok(false) => count(&self.stats.unsent),
            Err(error) => {
                count(&self.stats.unsent);
                if let Some(count) = self.failures.count(now.into_std()) {
                    warn!(count, %error, "could not send {count} messages to other bridges: {error}");
                }
            }
        }
    }

    fn try_send(&mut self, message: &FeedMessage, now: Instant) -> Result<bool, Unsent> {
        let Some(keys) = &self.keys else {
            return Ok(false);
        };
        let parcel = Parcel {
            sender: self.id,
            number: self.number + 1,
            body: message.encode(now),
        };
        for fragment in parcel.split()? {
            if !self.link.send(keys.seal(&self.subject, fragment)?) {
                return Ok(false);
            }
        }
        self.number = parcel.number;
        self.watch.sent(self.number, now);
        Ok(true)
    }

    /// Waits for the next message of another bridge. Can be cancelled. `clock` tells the
    /// database's time.
    pub async fn receive(&mut self, clock: impl Fn() -> Moment) -> FeedMessage {
        loop {
            let sealed = self.link.receive().await;
            let now = Instant::now();
            match self.open(&sealed, now, clock()) {
                Ok(Some(message)) => return message,
                Ok(None) => {}
                Err(error) => {
                    count(&self.stats.rejected);
                    if let Some(count) = self.rejections.count(now.into_std()) {
                        warn!(
                            count, %error,
                            "dropped {count} messages on NATS that no bridge of this table can \
                             have sent with the current keys: {error}"
                        );
                    }
                }
            }
        }
    }

    /// `None` if it is this bridge's own, or not the last fragment of a message.
    fn open(
        &mut self,
        sealed: &[u8],
        now: Instant,
        clock: Moment,
    ) -> Result<Option<FeedMessage>, Rejected> {
        let Some(keys) = &self.keys else {
            return Ok(None);
        };
        let fragment = keys.open(&self.subject, sealed)?;
        let Some(parcel) = self.assembler.add(&fragment) else {
            return Ok(None);
        };
        if parcel.sender == self.id {
            self.watch.echoed(parcel.number, self.number, now);
            return Ok(None);
        }
        // A feeder reads by itself.
        if self.watch.role() == FeedRole::Feeding {
            return Ok(None);
        }
        Ok(Some(FeedMessage::decode(&parcel.body, now, clock)?))
    }

    /// Records what was done with a message. Returns whether to poll.
    pub fn received(&mut self, sign: Sign, received: Received, now: Instant) -> bool {
        let stats = &self.stats;
        match received {
            Received::Seen => count(&stats.seen),
            Received::Applied(rows) => {
                count(&stats.applied);
                stats.rows.fetch_add(rows as u64, Ordering::Relaxed);
            }
            Received::Gap => count(&stats.gaps),
            Received::OtherHistory => count(&stats.rejected),
        }
        match received {
            Received::Seen | Received::Applied(_) => {
                let before = self.watch.role();
                self.watch.heard(sign, now);
                if before != self.watch.role() {
                    debug!(role = ?self.watch.role(), "the feeder was heard");
                }
                self.report();
                self.watch.role() == FeedRole::Alone
            }
            Received::Gap => {
                self.watch.missed(now);
                true
            }
            Received::OtherHistory => false,
        }
    }

    /// The state that decides when to poll.
    pub fn watch(&mut self) -> &mut FeedWatch {
        &mut self.watch
    }
}
