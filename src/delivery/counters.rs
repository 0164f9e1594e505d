//! What this bridge does, counted: rows that it read, rows that it marked, and
//! how long rows took from `created_at` to the socket.
//!
//! Counting is on the way of every event, so it is a few additions that nobody
//! waits for.

use std::{
    array,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    delivery::health::Watching,
    domain::clock::{Clock, Moment},
};

/// A delay counts in the first of these that it doesn't exceed, or beyond them.
/// The view `tidings_delay` has the same.
pub const BOUNDS: [Duration; 17] = [
    Duration::from_micros(200),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(60),
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// The same in microseconds, to look a delay up in.
const BOUNDS_IN_MICROS: [u64; BOUNDS.len()] = {
    let mut micros = [0; BOUNDS.len()];
    let mut bound = 0;
    while bound < BOUNDS.len() {
        micros[bound] = BOUNDS[bound].as_micros() as u64;
        bound += 1;
    }
    micros
};

/// What this bridge has done since it started, and how it learns of rows.
#[derive(Debug, Default)]
pub struct Activity {
    /// By which delays are told.
    pub clock: Clock,
    seen: AtomicU64,
    sent: AtomicU64,
    delays: [AtomicU64; BUCKETS],
    delay_micros: AtomicU64,
    listening: Mutex<Option<Listening>>,
    news: Notify,
}

/// Who listens, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The backend of the session that listens.
    pub pid: i32,
    /// Whose it is.
    pub role: String,
    /// How it learns of rows.
    pub watching: Watching,
    /// Since when that is so.
    pub since: Moment,
}

/// What has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows that the tail read.
    pub seen: u64,
    /// Rows that were marked as sent.
    pub sent: u64,
    /// How many were written within each of [`BOUNDS`] and not within the one
    /// before it; the last, beyond them all.
    pub delays: [u64; BUCKETS],
}

impl Totals {
    /// What has been counted since then.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            seen: self.seen - before.seen,
            sent: self.sent - before.sent,
            delays: array::from_fn(|bucket| self.delays[bucket] - before.delays[bucket]),
        }
    }
}

/// How long rows took from `created_at` to a connection that had been open before,
/// as monitors have histograms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delays {
    /// A bound in seconds, and how many took no longer and longer than the one
    /// before it. The last has no end.
    pub buckets: [(f64, u64); BUCKETS],
    /// How many seconds all of them took together.
    pub sum: f64,
    /// How many there were.
    pub count: u64,
}

impl Activity {
    /// The tail has read so many new rows.
    pub fn read(&self, rows: usize) {
        self.seen.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// So many rows were marked as sent.
    pub fn marked(&self, rows: u64) {
        self.sent.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows of these times were handed to a socket of a connection that was opened
    /// then. What is older waited for its user, and not for the bridge.
    pub fn written(&self, opened: Moment, created: impl IntoIterator<Item = Moment>) {
        let now = self.clock.now();
        for created in created {
            if created >= opened {
                self.took(now.0.saturating_sub(created.0).max(0).unsigned_abs());
            }
        }
    }

    fn took(&self, micros: u64) {
        let bucket = BOUNDS_IN_MICROS.partition_point(|&bound| bound < micros);
        self.delays[bucket].fetch_add(1, Ordering::Relaxed);
        self.delay_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The delays since the start, for a monitor.
    pub fn delays(&self) -> Delays {
        let counts = self.totals().delays;
        let bound = |bucket: usize| {
            BOUNDS
                .get(bucket)
                .map_or(f64::INFINITY, Duration::as_secs_f64)
        };
        Delays {
            buckets: array::from_fn(|bucket| (bound(bucket), counts[bucket])),
            sum: Duration::from_micros(self.delay_micros.load(Ordering::Relaxed)).as_secs_f64(),
            count: counts.iter().sum(),
        }
    }

    /// All that has been counted.
    pub fn totals(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            seen: load(&self.seen),
            sent: load(&self.sent),
            delays: array::from_fn(|bucket| load(&self.delays[bucket])),
        }
    }

    /// The listener has a session, and how it learns of rows.
    pub fn listens(&self, pid: i32, role: &str, watching: Watching) {
        let mut listening = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_known = listening
            .as_ref()
            .is_some_and(|known| known.pid == pid && known.watching == watching);
        if !is_known {
            *listening = Some(Listening {
                pid,
                role: role.to_owned(),
                watching,
                since: self.clock.now(),
            });
            drop(listening);
            self.news.notify_one();
        }
    }

    /// How the bridge learns of rows, once it does.
    pub fn listening(&self) -> Option<Listening> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Resolves when that has changed.
    pub async fn changed(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_counts_within_its_bound_alone() {
        let activity = Activity::default();
        for micros in [0, 200, 201, 60_000_000, 60_000_001] {
            activity.took(micros);
        }
        let delays = activity.delays();
        assert_eq!(delays.count, 5);
        assert!((delays.sum - 120.000_402).abs() < 1e-9, "{}", delays.sum);
        assert_eq!(delays.buckets[0], (0.000_2, 2));
        assert_eq!(delays.buckets[1], (0.000_5, 1));
        assert_eq!(delays.buckets[16], (60.0, 1));
        assert_eq!(delays.buckets[17], (f64::INFINITY, 1));
    }

    #[test]
    fn what_is_older_than_the_connection_has_no_delay() {
        let activity = Activity::default();
        let now = activity.clock.now();
        let before = |seconds| now.before(Duration::from_secs(seconds));
        // The last one comes from a clock that is ahead.
        let created = [before(7), before(3), Moment(now.0 + 60_000_000)];
        activity.written(before(5), created);
        let delays = activity.totals().delays;
        assert_eq!(delays.iter().sum::<u64>(), 2);
        assert_eq!((delays[0], delays[13]), (1, 1));
    }

    #[test]
    fn it_tells_only_of_what_has_changed() {
        let activity = Activity::default();
        activity.listens(7, "bridge", Watching::Awake);
        let first = activity.listening();
        activity.listens(7, "bridge", Watching::Awake);
        assert_eq!(activity.listening(), first);
        activity.listens(7, "bridge", Watching::Asleep);
        assert_eq!(
            activity.listening().map(|listening| listening.watching),
            Some(Watching::Asleep)
        );
    }
}
