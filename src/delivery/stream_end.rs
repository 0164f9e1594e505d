//! When a stream ends, and why: the earliest of all reasons counts.

use std::time::Duration;

use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::time::Instant;

use crate::delivery::{mailbox::Ending, marker::Closed};

/// How long before the end of its identity a client is told.
const WARNING: Duration = Duration::from_secs(30);

/// Why a stream ends. In all cases but the first two its client is asked to come
/// back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The client has gone.
    Left,
    /// It took nothing for too long: it is too slow, or has vanished.
    Silent,
    /// It took nothing while its page kept others from reading theirs.
    Stalled,
    /// Its page could not be read because of a bug.
    Failed,
    /// It is old. Streams that never end gather on the bridge that was there
    /// first, and rest on what was believed when they began.
    Age,
    /// What proved whose it is has expired.
    Expired,
    /// The bridge was told to end it.
    Told(Ending),
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Left,
        Self::Silent,
        Self::Stalled,
        Self::Failed,
        Self::Age,
        Self::Expired,
        Self::Told(Ending::Draining),
        Self::Told(Ending::AnotherHistory),
        Self::Told(Ending::Disconnected),
    ];

    /// Whether the client returns with its last event id. One that has left may have
    /// been a page that was unloaded, one that took nothing may not have received what
    /// was written last, and one that was disconnected is logged out.
    pub fn closed(self) -> Closed {
        match self {
            Self::Age | Self::Expired | Self::Told(Ending::Draining | Ending::AnotherHistory) => {
                Closed::ByBridge
            }
            Self::Left
            | Self::Silent
            | Self::Stalled
            | Self::Failed
            | Self::Told(Ending::Disconnected) => Closed::ByClient,
        }
    }

    /// Its name in the metrics and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Failed => "failed",
            Self::Age => "age",
            Self::Expired => "expired",
            Self::Told(Ending::Draining) => "draining",
            Self::Told(Ending::AnotherHistory) => "history",
            Self::Told(Ending::Disconnected) => "disconnected",
        }
    }
}

/// The label of a counter.
type Label = [(&'static str, &'static str); 1];

/// Counts the streams that have ended.
#[derive(Clone, Debug)]
pub struct Ended(Family<Label, Counter>);

impl Default for Ended {
    fn default() -> Self {
        let ended = Self(Family::default());
        for reason in Reason::ALL {
            // So that it is there, as a zero, before the first.
            drop(ended.0.get_or_create(&[("reason", reason.name())]));
        }
        ended
    }
}

impl Ended {
    /// One more.
    pub fn count(&self, reason: Reason) {
        self.0.get_or_create(&[("reason", reason.name())]).inc();
    }

    /// The counters, by reason.
    pub fn counted(&self) -> Family<Label, Counter> {
        self.0.clone()
    }
}

/// The end of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    at: Instant,
    reason: Reason,
}

impl Ends {
    /// After some time.
    pub fn after(delay: Duration, reason: Reason) -> Self {
        Self {
            at: Instant::now() + delay,
            reason,
        }
    }

    /// Of age, which is three quarters to all of `most`: those who came together
    /// must not return together.
    pub fn of_age(most: Duration) -> Self {
        let age = most.mul_f64(rand::random_range(0.75..=1.0));
        Self::after(age, Reason::Age)
    }

    /// That, or when the identity expires that it was opened with.
    pub fn or_expiry(self, expires: Option<Instant>) -> Self {
        let expired = |at| Self {
            at,
            reason: Reason::Expired,
        };
        expires.map_or(self, |at| self.or(expired(at)))
    }

    /// The earlier of both.
    pub fn or(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }

    /// When.
    pub fn at(self) -> Instant {
        self.at
    }

    /// Why.
    pub fn reason(self) -> Reason {
        self.reason
    }

    /// Whether the time has come.
    pub fn has_come(self) -> bool {
        self.at <= Instant::now()
    }
}

/// When the client is told of the end of its identity: in time to get a new
/// one, but not before half of it is over.
#[derive(Clone, Copy, Debug)]
pub struct Warning {
    at: Instant,
    expires: Instant,
}

impl Warning {
    /// Of an end at this time.
    pub fn before(expires: Instant) -> Self {
        let left = expires.saturating_duration_since(Instant::now());
        let at = expires - WARNING.min(left / 2);
        Self { at, expires }
    }

    /// When.
    pub fn at(self) -> Instant {
        self.at
    }

    /// What is left, once it is time.
    pub fn left(self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts_and_its_reason() {
        let day = Duration::from_secs(86_400);
        let age = Ends::of_age(day);
        let left = age.at().saturating_duration_since(Instant::now());
        assert!((day * 7 / 10..=day).contains(&left), "{left:?}");
        let told = Ends::after(day / 2, Reason::Told(Ending::Draining));
        assert_eq!(age.or(told).reason(), Reason::Told(Ending::Draining));
        assert_eq!(told.or(age).reason(), Reason::Told(Ending::Draining));
        let late = Ends::after(day * 2, Reason::Told(Ending::Draining));
        assert_eq!(age.or(late).reason(), Reason::Age);
        assert!(
            !age.has_come()
                && Ends::after(Duration::ZERO, Reason::Told(Ending::Draining)).has_come()
        );
    }
}
