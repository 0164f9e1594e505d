//! The database's clock. Rows carry its time, and this machine's clock may differ from
//! it.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::BytesMut;
use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// How many comparisons are kept. The narrowest one counts: it had the least network
/// delay.
const COMPARISONS: usize = 16;

/// Postgres' epoch, 2000-01-01, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;

const MINUTE: i64 = 60_000_000;

const DAY: i64 = 24 * 60 * MINUTE;

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

/// RFC 3339 in UTC with microseconds. Like Postgres' `to_char`, it shows years before
/// Christ without saying so.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, micros) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        let (year, month, day) = date(days);
        let year = if year > 0 { year } else { 1 - year };
        let (minutes, micros) = (micros / MINUTE, micros % MINUTE);
        let (hour, minute) = (minutes / 60, minutes % 60);
        let (second, micros) = (micros / 1_000_000, micros % 1_000_000);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The year, month and day of the Gregorian calendar, this many days after 2000-01-01.
/// Years are counted from March, so that a leap day is the last day of its year.
fn date(days: i64) -> (i64, i64, i64) {
    const CYCLE: i64 = 400 * 365 + 97;
    // A cycle of 400 years began on 2000-03-01.
    let (cycle, day) = ((days - 60).div_euclid(CYCLE), (days - 60).rem_euclid(CYCLE));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = 2_000 + cycle * 400 + year;
    match month {
        0..10 => (year, month + 3, day),
        _ => (year + 1, month - 9, day),
    }
}

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        match i64::from_sql(&Type::INT8, raw)? {
            i64::MIN | i64::MAX => Err("an infinite time".into()),
            micros => Ok(Self(micros)),
        }
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
    fn a_moment_is_shown_as_postgres_shows_it() {
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
            assert_eq!(Moment(micros).to_string(), text);
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
