//! The database's clock. Rows carry its time, and this machine's clock may differ from
//! it.

use std::{
    collections::VecDeque,
    error::Error,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// How many comparisons are kept. The narrowest one counts: it had the least network
/// delay.
const COMPARISONS: usize = 16;

/// Postgres' epoch, 2000-01-01, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

const MINUTE: i64 = 60_000_000;

/// A time by the database's clock, in microseconds since 2000-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// The current time by this machine's clock.
    pub fn here() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since.map(|since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        Self(micros.unwrap_or_default().saturating_sub(EPOCH))
    }

    /// Parses the format that the reading queries print: `2000-01-01T00:00:00.000000Z`.
    pub fn parse(text: &str) -> Option<Self> {
        let text: &[u8; 27] = text.as_bytes().try_into().ok()?;
        let number = |from: usize, to: usize| {
            text[from..to].iter().try_fold(0, |number, &digit| {
                let digit = digit.wrapping_sub(b'0');
                (digit < 10).then(|| number * 10 + i64::from(digit))
            })
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute) = (number(11, 13)?, number(14, 16)?);
        let (second, micros) = (number(17, 19)?, number(20, 26)?);
        let minutes = (days(year, month, day) * 24 + hour) * 60 + minute;
        Some(Self(minutes * MINUTE + second * 1_000_000 + micros))
    }

    /// Rounds down to the minute.
    pub fn minute(self) -> Self {
        Self(self.0 - self.0.rem_euclid(MINUTE))
    }

    pub fn before(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }

    /// The time left until the next whole multiple of `step`.
    pub fn until_next(self, step: Duration) -> Duration {
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1);
        let left = step - self.0.rem_euclid(step);
        Duration::from_micros(left.unsigned_abs())
    }
}

/// Days from 2000-01-01 to this day of the Gregorian calendar. Years are counted from
/// March, so that a leap day is the last day of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // From 0000-03-01 to 2000-01-01.
    const TO_2000: i64 = 730_425;
    year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - TO_2000
}

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        i64::from_sql(&Type::INT8, raw).map(Self)
    }

    accepts!(TIMESTAMPTZ);
}

impl ToSql for Moment {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.0.to_sql(&Type::INT8, out)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

/// Estimates how far the database's clock is ahead of this machine's.
#[derive(Debug)]
pub struct Clock {
    /// In microseconds; [`UNKNOWN`] before the first comparison.
    ahead: AtomicI64,
    comparisons: Mutex<VecDeque<Comparison>>,
}

const UNKNOWN: i64 = i64::MIN;

/// Bounds on how far the database's clock was ahead, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Comparison {
    least: i64,
    most: i64,
}

impl Comparison {
    fn width(self) -> i64 {
        self.most - self.least
    }

    fn agrees_with(self, other: Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            ahead: AtomicI64::new(UNKNOWN),
            comparisons: Mutex::default(),
        }
    }
}

impl Clock {
    /// How many microseconds the database's clock is ahead; negative if it is behind,
    /// `None` before the first comparison.
    pub fn ahead(&self) -> Option<i64> {
        let ahead = self.ahead.load(Ordering::Relaxed);
        (ahead != UNKNOWN).then_some(ahead)
    }

    /// The current time by the database's clock, as far as it is known; before the first
    /// comparison, this machine's.
    pub fn now(&self) -> Moment {
        let ahead = self.ahead().unwrap_or_default();
        Moment(Moment::here().0.saturating_add(ahead))
    }

    /// Records a comparison: the database reported the time `theirs`, between `asked` and
    /// `answered` by this machine's clock.
    pub fn compare(&self, asked: Moment, theirs: Moment, answered: Moment) {
        let comparison = Comparison {
            least: theirs.0.saturating_sub(answered.0),
            most: theirs.0.saturating_sub(asked.0),
        };
        if comparison.width() < 0 {
            // This machine's clock was set back in the meantime.
            return;
        }
        let mut comparisons = self.comparisons.lock();
        // If either clock was set, earlier comparisons contradict this one and are void.
        comparisons.retain(|&other| other.agrees_with(comparison));
        comparisons.truncate(COMPARISONS - 1);
        comparisons.push_front(comparison);
        let closest = comparisons.iter().min_by_key(|other| other.width());
        let Comparison { least, most } = closest.copied().unwrap_or(comparison);
        self.ahead.store(least.midpoint(most), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_as_postgres_counts_it() {
        // select extract(epoch from '…'::timestamptz - '2000-01-01Z') * 1e6
        for (text, micros) in [
            ("2000-01-01T00:00:00.000000Z", 0),
            ("1999-12-31T23:59:59.999999Z", -1),
            ("2000-02-29T12:00:00.000001Z", 5_140_800_000_001),
            ("2000-03-01T00:00:00.000000Z", 5_184_000_000_000),
            ("2026-11-23T04:05:06.070809Z", 848_721_906_070_809),
            ("1970-01-01T00:00:00.000000Z", -EPOCH),
            ("2100-03-01T00:00:00.000000Z", 3_160_857_600_000_000),
        ] {
            assert_eq!(Moment::parse(text), Some(Moment(micros)), "{text}");
        }
        for text in [
            "",
            "infinity",
            "10000-01-01T00:00:00.00000Z",
            "200x-01-01T00:00:00.000000Z",
        ] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_closest_comparison_counts_until_a_clock_is_set() {
        let clock = Clock::default();
        assert_eq!(clock.ahead(), None);
        let compare = |asked, theirs, answered| {
            clock.compare(Moment(asked), Moment(theirs), Moment(answered));
            clock.ahead().expect("compared")
        };
        // Between 900 and 1,000 ahead.
        assert_eq!(compare(0, 1_000, 100), 950);
        // A slower comparison adds nothing.
        assert_eq!(compare(1_000, 5_000, 4_500), 950);
        // A quicker one narrows the estimate.
        assert_eq!(compare(5_000, 5_930, 5_010), 925);
        // The database's clock was set back by a second.
        assert_eq!(compare(9_000, -991_000, 9_100), -1_000_050);
        // This machine's clock was set back during the query.
        assert_eq!(compare(10_000, 0, 9_000), -1_000_050);
    }

    #[test]
    fn a_comparison_is_forgotten_in_time() {
        let clock = Clock::default();
        clock.compare(Moment(0), Moment(0), Moment(0));
        for asked in 0..COMPARISONS as i64 {
            assert_eq!(clock.ahead(), Some(0));
            clock.compare(Moment(asked), Moment(asked + 4), Moment(asked + 4));
        }
        assert_eq!(clock.ahead(), Some(2));
    }
}
