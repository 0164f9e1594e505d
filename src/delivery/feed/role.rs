//! Whether this bridge reads the table for others, follows one that does, or polls only for
//! itself. Pure, without I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How soon the next message of a feeder follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pace {
    /// The feeder polls: within [`TICK`].
    Awake,
    /// It waits for the doorbell: within a second.
    Asleep,
    /// None follows: the feeder stops.
    Leaving,
}

/// While it polls, a feeder sends at least this often.
pub const TICK: Duration = Duration::from_millis(100);

/// How long a feeder that polls may be silent: five ticks. So much later are rows if it
/// dies.
const SILENCE_AWAKE: Duration = Duration::from_millis(500);

/// How long one that sleeps may be silent: it polls once a second.
const SILENCE_ASLEEP: Duration = Duration::from_millis(2_500);

/// How long after the doorbell rang a message may take to arrive. Otherwise the follower
/// polls: the feeder may have died in its sleep.
const RUNG_LIMIT: Duration = Duration::from_millis(100);

/// How long a feeder's own message may take to come back. Otherwise it doesn't reach the
/// others either.
const ECHO_LIMIT: Duration = Duration::from_secs(1);

/// How often a bridge that follows none tries to become the feeder.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// How long a feeder whose messages did not come back leaves it to others.
const RESIGNED: Duration = Duration::from_secs(5);

/// What a bridge is to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedRole {
    /// It polls for itself: no messages arrive.
    #[default]
    Alone,
    /// It takes rows from messages.
    Following,
    /// It polls, and sends what it reads.
    Feeding,
}

impl FeedRole {
    pub const ALL: [Self; 3] = [Self::Alone, Self::Following, Self::Feeding];

    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Following => "following",
            Self::Feeding => "feeding",
        }
    }
}

/// Why a poll is due although the usual time hasn't come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// No message followed the doorbell.
    Rung,
    /// The feeder is silent: this bridge is alone now.
    Feeder,
    /// The feeder's own messages don't come back: this bridge is alone now, and must let
    /// others feed.
    Echo,
}

/// The state that decides.
#[derive(Debug)]
pub struct FeedWatch {
    role: FeedRole,
    /// When the last message of a feeder arrived, and what it said.
    heard: (Instant, Pace),
    /// When the doorbell rang, if no message has arrived since.
    rung: Option<Instant>,
    /// The first message of its own that has not come back: its number, and when it was
    /// sent.
    sent: Option<(u64, Instant)>,
    /// When to try to become the feeder.
    tries_at: Instant,
}

impl FeedWatch {
    pub fn new(now: Instant) -> Self {
        Self {
            role: FeedRole::Alone,
            heard: (now, Pace::Leaving),
            rung: None,
            sent: None,
            tries_at: now,
        }
    }

    pub fn role(&self) -> FeedRole {
        self.role
    }

    /// A message of a feeder has arrived, and the bridge has seen all that it says.
    pub fn heard(&mut self, pace: Pace, now: Instant) {
        if self.role == FeedRole::Feeding {
            return;
        }
        self.heard = (now, pace);
        self.rung = None;
        self.role = match pace {
            Pace::Awake | Pace::Asleep => FeedRole::Following,
            Pace::Leaving => FeedRole::Alone,
        };
        if pace == Pace::Leaving {
            self.tries_at = now;
        }
    }

    /// The doorbell rang. Returns whether a poll is due.
    pub fn rung(&mut self, now: Instant) -> bool {
        if self.role != FeedRole::Following {
            return true;
        }
        self.rung.get_or_insert(now);
        false
    }

    /// The bridge has polled.
    pub fn polled(&mut self) {
        self.rung = None;
    }

    /// Whether to try to become the feeder now. If so, the next time is later.
    pub fn tries(&mut self, now: Instant) -> bool {
        let tries = self.role == FeedRole::Alone && self.tries_at <= now;
        if tries {
            self.tries_at = now + TRY_EVERY;
        }
        tries
    }

    pub fn feeds(&mut self) {
        self.role = FeedRole::Feeding;
        self.sent = None;
    }

    /// The feeder has sent this message of its own.
    pub fn sent(&mut self, number: u64, now: Instant) {
        self.sent.get_or_insert((number, now));
    }

    /// This message of its own has come back. Messages come back in order.
    pub fn came_back(&mut self, number: u64, last: u64, now: Instant) {
        if self.sent.is_some_and(|(sent, _)| sent <= number) {
            self.sent = (number < last).then_some((number + 1, now));
        }
    }

    /// When [`overdue`](Self::overdue) has to be asked again.
    pub fn alarm(&self) -> Option<Instant> {
        match self.role {
            FeedRole::Alone => None,
            FeedRole::Following => {
                let silent = self.silent_at();
                let rung = self.rung.map(|rung| rung + RUNG_LIMIT);
                Some(rung.map_or(silent, |rung| rung.min(silent)))
            }
            FeedRole::Feeding => self.sent.map(|(_, at)| at + ECHO_LIMIT),
        }
    }

    fn silent_at(&self) -> Instant {
        let (heard, pace) = self.heard;
        match pace {
            Pace::Awake => heard + SILENCE_AWAKE,
            Pace::Asleep => heard + SILENCE_ASLEEP,
            Pace::Leaving => heard,
        }
    }

    /// What is overdue.
    pub fn overdue(&mut self, now: Instant) -> Option<Overdue> {
        if self.alarm().is_none_or(|alarm| alarm > now) {
            return None;
        }
        Some(match self.role {
            FeedRole::Feeding => {
                self.resigns(now);
                Overdue::Echo
            }
            FeedRole::Following if self.silent_at() <= now => {
                self.is_alone(now);
                Overdue::Feeder
            }
            FeedRole::Following | FeedRole::Alone => {
                self.rung = None;
                Overdue::Rung
            }
        })
    }

    /// The feeder can't send, and leaves it to others for a while.
    pub fn resigns(&mut self, now: Instant) {
        self.is_alone(now);
        self.tries_at = now + RESIGNED;
    }

    /// Nothing arrives any more.
    pub fn is_alone(&mut self, now: Instant) {
        self.role = FeedRole::Alone;
        (self.rung, self.sent) = (None, None);
        self.tries_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn following(pace: Pace) -> (FeedWatch, Instant) {
        let now = Instant::now();
        let mut watch = FeedWatch::new(now);
        watch.heard(pace, now);
        (watch, now)
    }

    #[test]
    fn a_bridge_that_hears_nothing_tries_to_feed_once_a_second() {
        let now = Instant::now();
        let mut watch = FeedWatch::new(now);
        assert_eq!(watch.alarm(), None);
        assert!(watch.tries(now));
        assert!(!watch.tries(now + TRY_EVERY - MILLISECOND));
        assert!(watch.tries(now + TRY_EVERY));
        watch.heard(Pace::Asleep, now);
        assert_eq!(watch.role(), FeedRole::Following);
        assert!(!watch.tries(now + 9 * TRY_EVERY));
    }

    #[test]
    fn a_feeder_that_is_silent_is_followed_no_longer() {
        for (pace, limit) in [(Pace::Awake, SILENCE_AWAKE), (Pace::Asleep, SILENCE_ASLEEP)] {
            let (mut watch, now) = following(pace);
            assert_eq!(watch.overdue(now + limit - MILLISECOND), None);
            let silent = watch.alarm().expect("an alarm");
            assert_eq!(silent, now + limit);
            assert_eq!(watch.overdue(silent), Some(Overdue::Feeder));
            assert_eq!(watch.role(), FeedRole::Alone);
            assert!(watch.tries(silent));
        }
    }

    #[test]
    fn a_feeder_that_leaves_is_replaced_at_once() {
        let (mut watch, now) = following(Pace::Awake);
        watch.heard(Pace::Leaving, now);
        assert_eq!(watch.role(), FeedRole::Alone);
        assert!(watch.tries(now));
    }

    #[test]
    fn a_doorbell_without_a_message_is_followed_by_a_poll() {
        let (mut watch, now) = following(Pace::Asleep);
        assert!(!watch.rung(now));
        assert!(!watch.rung(now + 50 * MILLISECOND));
        let alarm = watch.alarm().expect("an alarm");
        assert_eq!(alarm, now + RUNG_LIMIT);
        assert_eq!(watch.overdue(alarm), Some(Overdue::Rung));
        assert_eq!(watch.role(), FeedRole::Following);
        assert_eq!(watch.overdue(alarm), None);
        // One with a message isn't.
        watch.rung(alarm);
        watch.heard(Pace::Asleep, alarm);
        assert_eq!(watch.overdue(alarm + RUNG_LIMIT), None);
        // Nor one after which the bridge has polled anyway.
        watch.rung(alarm);
        watch.polled();
        assert_eq!(watch.overdue(alarm + RUNG_LIMIT), None);
        assert!(FeedWatch::new(now).rung(now), "alone, it polls at once");
    }

    #[test]
    fn a_feeder_whose_messages_do_not_come_back_resigns_for_a_while() {
        let now = Instant::now();
        let mut watch = FeedWatch::new(now);
        watch.feeds();
        watch.sent(1, now);
        watch.sent(2, now + 10 * MILLISECOND);
        watch.came_back(1, 2, now + 20 * MILLISECOND);
        let alarm = watch.alarm().expect("an alarm");
        watch.came_back(2, 2, now + 30 * MILLISECOND);
        assert_eq!(watch.overdue(alarm), None);
        watch.sent(3, alarm);
        // A repeated one proves nothing.
        watch.came_back(2, 3, alarm);
        assert_eq!(watch.overdue(alarm + ECHO_LIMIT), Some(Overdue::Echo));
        assert_eq!(watch.role(), FeedRole::Alone);
        assert!(!watch.tries(alarm + ECHO_LIMIT + RESIGNED - MILLISECOND));
        assert!(watch.tries(alarm + ECHO_LIMIT + RESIGNED));
    }

    #[test]
    fn a_feeder_follows_nobody() {
        let now = Instant::now();
        let mut watch = FeedWatch::new(now);
        watch.feeds();
        watch.heard(Pace::Awake, now);
        watch.heard(Pace::Leaving, now);
        assert_eq!(watch.role(), FeedRole::Feeding);
    }
}
