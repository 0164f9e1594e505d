//! Whether this bridge reads the table for others, follows one that does, or polls only for
//! itself. Pure, without I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// What a feeder says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sign {
    /// The next message follows within [`TICK`].
    Feeds,
    /// It stops: none follows.
    Leaves,
}

/// A feeder sends at least this often, also without rows, and without asking Postgres.
pub const TICK: Duration = Duration::from_millis(200);

/// How long a feeder may be silent: five ticks. So much later are rows if it dies.
const SILENCE: Duration = Duration::from_secs(1);

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

/// What did not happen in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Nothing was sent for a while: the others must hear that this bridge feeds.
    Tick,
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
    /// When the last message of a feeder arrived.
    heard: Instant,
    /// When the last message was sent.
    sent_at: Instant,
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
            heard: now,
            sent_at: now,
            sent: None,
            tries_at: now,
        }
    }

    pub fn role(&self) -> FeedRole {
        self.role
    }

    /// A message of a feeder has arrived, and the bridge has seen all that it says.
    pub fn heard(&mut self, sign: Sign, now: Instant) {
        if self.role == FeedRole::Feeding {
            return;
        }
        self.heard = now;
        match sign {
            Sign::Feeds => self.role = FeedRole::Following,
            Sign::Leaves => self.is_alone(now),
        }
    }

    /// A message of a feeder has arrived, and something before it is missing. That is no
    /// reason to leave a feeder, nor one to follow it.
    pub fn missed(&mut self, now: Instant) {
        if self.role == FeedRole::Following {
            self.heard = now;
        }
    }

    /// Whether to try to become the feeder now. If so, the next time is later.
    pub fn tries(&mut self, now: Instant) -> bool {
        let tries = self.role == FeedRole::Alone && self.tries_at <= now;
        if tries {
            self.tries_at = now + TRY_EVERY;
        }
        tries
    }

    pub fn feeds(&mut self, now: Instant) {
        self.role = FeedRole::Feeding;
        (self.sent, self.sent_at) = (None, now);
    }

    /// The feeder has sent something, or tried to.
    pub fn tried_to_send(&mut self, now: Instant) {
        self.sent_at = now;
    }

    /// The feeder has sent this message.
    pub fn sent(&mut self, number: u64, now: Instant) {
        self.sent.get_or_insert((number, now));
    }

    /// This message of its own has come back. Messages come back in order.
    pub fn echoed(&mut self, number: u64, last: u64, now: Instant) {
        if self.sent.is_some_and(|(sent, _)| sent <= number) {
            self.sent = (number < last).then_some((number + 1, now));
        }
    }

    /// When [`overdue`](Self::overdue) has to be asked again.
    pub fn alarm(&self) -> Option<Instant> {
        match self.role {
            FeedRole::Alone => None,
            FeedRole::Following => Some(self.heard + SILENCE),
            FeedRole::Feeding => {
                let echo = self.sent.map(|(_, at)| at + ECHO_LIMIT);
                let tick = self.sent_at + TICK;
                Some(echo.map_or(tick, |echo| echo.min(tick)))
            }
        }
    }

    /// What is overdue.
    pub fn overdue(&mut self, now: Instant) -> Option<Overdue> {
        if self.alarm().is_none_or(|alarm| alarm > now) {
            return None;
        }
        match self.role {
            FeedRole::Alone => None,
            FeedRole::Following => {
                self.is_alone(now);
                Some(Overdue::Feeder)
            }
            FeedRole::Feeding if self.sent.is_some_and(|(_, at)| at + ECHO_LIMIT <= now) => {
                self.resigns(now);
                Some(Overdue::Echo)
            }
            FeedRole::Feeding => Some(Overdue::Tick),
        }
    }

    /// The feeder can't send, and leaves it to others for a while.
    pub fn resigns(&mut self, now: Instant) {
        self.is_alone(now);
        self.tries_at = now + RESIGNED;
    }

    /// Nothing arrives any more.
    pub fn is_alone(&mut self, now: Instant) {
        self.role = FeedRole::Alone;
        self.sent = None;
        self.tries_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn following() -> (FeedWatch, Instant) {
        let now = Instant::now();
        let mut watch = FeedWatch::new(now);
        watch.heard(Sign::Feeds, now);
        (watch, now)
    }

    fn feeding() -> (FeedWatch, Instant) {
        let now = Instant::now();
        let mut watch = FeedWatch::new(now);
        watch.feeds(now);
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
        watch.heard(Sign::Feeds, now);
        assert_eq!(watch.role(), FeedRole::Following);
        assert!(!watch.tries(now + 9 * TRY_EVERY));
    }

    #[test]
    fn a_feeder_that_is_silent_is_followed_no_longer() {
        let (mut watch, now) = following();
        watch.heard(Sign::Feeds, now + TICK);
        let silent = now + TICK + SILENCE;
        assert_eq!(watch.alarm(), Some(silent));
        assert_eq!(watch.overdue(silent - MILLISECOND), None);
        assert_eq!(watch.overdue(silent), Some(Overdue::Feeder));
        assert_eq!(watch.role(), FeedRole::Alone);
        assert!(watch.tries(silent));
    }

    #[test]
    fn a_feeder_is_followed_although_messages_get_lost() {
        let (mut watch, now) = following();
        watch.missed(now + SILENCE);
        assert_eq!(watch.overdue(now + SILENCE), None);
        let mut alone = FeedWatch::new(now);
        alone.missed(now);
        assert_eq!(alone.role(), FeedRole::Alone);
    }

    #[test]
    fn a_feeder_that_leaves_is_replaced_at_once() {
        let (mut watch, now) = following();
        watch.heard(Sign::Leaves, now);
        assert_eq!(watch.role(), FeedRole::Alone);
        assert!(watch.tries(now));
    }

    #[test]
    fn a_feeder_is_heard_even_if_nothing_happens() {
        let (mut watch, now) = feeding();
        assert_eq!(watch.overdue(now + TICK - MILLISECOND), None);
        assert_eq!(watch.alarm(), Some(now + TICK));
        assert_eq!(watch.overdue(now + TICK), Some(Overdue::Tick));
        watch.tried_to_send(now + TICK);
        assert_eq!(watch.overdue(now + TICK), None);
        assert!(5 * TICK <= SILENCE);
    }

    #[test]
    fn a_feeder_whose_messages_do_not_come_back_resigns_for_a_while() {
        let (mut watch, now) = feeding();
        watch.sent(1, now);
        watch.sent(2, now + 10 * MILLISECOND);
        watch.echoed(1, 2, now + 20 * MILLISECOND);
        watch.echoed(2, 2, now + 30 * MILLISECOND);
        let late = now + ECHO_LIMIT + 30 * MILLISECOND;
        assert_eq!(watch.overdue(late), Some(Overdue::Tick));
        watch.sent(3, late);
        // A repeated one proves nothing.
        watch.echoed(2, 3, late);
        assert_eq!(watch.overdue(late + ECHO_LIMIT), Some(Overdue::Echo));
        assert_eq!(watch.role(), FeedRole::Alone);
        assert!(!watch.tries(late + ECHO_LIMIT + RESIGNED - MILLISECOND));
        assert!(watch.tries(late + ECHO_LIMIT + RESIGNED));
    }

    #[test]
    fn a_feeder_follows_nobody() {
        let (mut watch, now) = feeding();
        watch.heard(Sign::Feeds, now);
        watch.heard(Sign::Leaves, now);
        assert_eq!(watch.role(), FeedRole::Feeding);
    }
}
