//! When a stream ends, and why: the earliest of all reasons counts.

use std::time::Duration;

use tokio::time::Instant;

/// Why a stream ends, and its client is asked to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is old. Streams that never end gather on the bridge that was there
    /// first, and rest on what was believed when they began.
    Age,
    /// What proved whose it is has expired.
    Expired,
    /// The bridge was told to end it.
    Told,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts_and_its_reason() {
        let day = Duration::from_secs(86_400);
        let age = Ends::of_age(day);
        let left = age.at().saturating_duration_since(Instant::now());
        assert!((day * 7 / 10..=day).contains(&left), "{left:?}");
        let told = Ends::after(day / 2, Reason::Told);
        assert_eq!(age.or(told).reason(), Reason::Told);
        assert_eq!(told.or(age).reason(), Reason::Told);
        let late = Ends::after(day * 2, Reason::Told);
        assert_eq!(age.or(late).reason(), Reason::Age);
        assert!(!age.has_come() && Ends::after(Duration::ZERO, Reason::Told).has_come());
    }
}
