//! When and why a stream ends. If several reasons apply, the earliest one counts.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    delivery::{mailbox::Ending, marker::Closed},
    runtime::reason_counter::{Reason, ReasonCounter},
};

/// How long before its credentials expire a client is warned.
const WARNING: Duration = Duration::from_secs(30);

/// Why a stream ends. Unless the client disconnected or stopped reading, it is asked to
/// reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The client disconnected.
    Left,
    /// The client read nothing for too long: it is too slow, or has vanished.
    Silent,
    /// The client read nothing while its page occupied memory that other clients needed.
    Stalled,
    /// A page could not be read because of a bug.
    Failed,
    /// The stream reached its maximum age. Streams that never end would accumulate on the
    /// oldest bridge and keep relying on credentials that were checked long ago.
    Age,
    /// The client's credentials expired.
    Expired,
    /// The bridge ended it.
    Requested(Ending),
}

impl EndReason {
    pub const ALL: [Self; 10] = [
        Self::Left,
        Self::Silent,
        Self::Stalled,
        Self::Failed,
        Self::Age,
        Self::Expired,
        Self::Requested(Ending::Draining),
        Self::Requested(Ending::AnotherHistory),
        Self::Requested(Ending::Disconnected),
        Self::Requested(Ending::TooManyChanges),
    ];

    /// Whether the client is expected to return with its last event id. A client that
    /// disconnected may have been a page that was unloaded; one that read nothing may not
    /// have received the last rows; one that was disconnected by the application is
    /// logged out.
    pub fn closed(self) -> Closed {
        match self {
            Self::Age
            | Self::Expired
            | Self::Requested(Ending::Draining | Ending::AnotherHistory) => Closed::ByBridge,
            Self::Left
            | Self::Silent
            | Self::Stalled
            | Self::Failed
            | Self::Requested(Ending::Disconnected | Ending::TooManyChanges) => Closed::ByClient,
        }
    }

    /// The reason's name in metrics and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Failed => "failed",
            Self::Age => "age",
            Self::Expired => "expired",
            Self::Requested(Ending::Draining) => "draining",
            Self::Requested(Ending::AnotherHistory) => "history",
            Self::Requested(Ending::Disconnected) => "disconnected",
            Self::Requested(Ending::TooManyChanges) => "memberships",
        }
    }
}

impl Reason for EndReason {
    fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }

    fn name(self) -> &'static str {
        Self::name(self)
    }
}

/// Counts the streams that have ended.
pub type Ended = ReasonCounter<EndReason>;

/// When a stream ends, and why.
#[derive(Clone, Copy, Debug)]
pub struct StreamDeadline {
    at: Instant,
    reason: EndReason,
}

impl StreamDeadline {
    pub fn after(delay: Duration, reason: EndReason) -> Self {
        Self {
            at: Instant::now() + delay,
            reason,
        }
    }

    /// Ends a stream at a random age between three quarters of `most` and `most`, so that
    /// clients that connected together don't reconnect together.
    pub fn of_age(most: Duration) -> Self {
        let age = most.mul_f64(rand::random_range(0.75..=1.0));
        Self::after(age, EndReason::Age)
    }

    /// The earlier of this end and the expiry of the client's credentials.
    pub fn or_expiry(self, expires: Option<Instant>) -> Self {
        let expired = |at| Self {
            at,
            reason: EndReason::Expired,
        };
        expires.map_or(self, |at| self.or(expired(at)))
    }

    pub fn or(self, other: Self) -> Self {
        if other.at < self.at { other } else { self }
    }

    pub fn at(self) -> Instant {
        self.at
    }

    pub fn reason(self) -> EndReason {
        self.reason
    }

    pub fn has_come(self) -> bool {
        self.at <= Instant::now()
    }
}

/// When a client is warned that its credentials expire: early enough to get new ones, but
/// not before half of the remaining time has passed.
#[derive(Clone, Copy, Debug)]
pub struct Warning {
    at: Instant,
    expires: Instant,
}

impl Warning {
    pub fn before(expires: Instant) -> Self {
        let left = expires.saturating_duration_since(Instant::now());
        let at = expires - WARNING.min(left / 2);
        Self { at, expires }
    }

    pub fn at(self) -> Instant {
        self.at
    }

    /// How long the credentials remain valid.
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
        let age = StreamDeadline::of_age(day);
        let left = age.at().saturating_duration_since(Instant::now());
        assert!((day * 7 / 10..=day).contains(&left), "{left:?}");
        let told = StreamDeadline::after(day / 2, EndReason::Requested(Ending::Draining));
        assert_eq!(
            age.or(told).reason(),
            EndReason::Requested(Ending::Draining)
        );
        assert_eq!(
            told.or(age).reason(),
            EndReason::Requested(Ending::Draining)
        );
        let late = StreamDeadline::after(day * 2, EndReason::Requested(Ending::Draining));
        assert_eq!(age.or(late).reason(), EndReason::Age);
        assert!(
            !age.has_come()
                && StreamDeadline::after(Duration::ZERO, EndReason::Requested(Ending::Draining))
                    .has_come()
        );
    }
}
