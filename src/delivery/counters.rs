//! Counts rows that this bridge read and marked, and measures the delay of rows from
//! `created_at` to the socket.
//!
//! Every row is counted, so counting is a few additions without locks.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    delivery::health::Watching,
    domain::clock::{Clock, Moment},
};

/// Upper bounds of the delay histogram. A delay is counted in the first bucket whose
/// bound it doesn't exceed, or in the last bucket if it exceeds all. The view
/// `tidings_delay` has the same bounds.
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

/// The bounds in microseconds, for looking up a delay's bucket.
const BOUNDS_IN_MICROS: [u64; BOUNDS.len()] = {
    let mut micros = [0; BOUNDS.len()];
    let mut bound = 0;
    while bound < BOUNDS.len() {
        micros[bound] = BOUNDS[bound].as_micros() as u64;
        bound += 1;
    }
    micros
};

/// What this bridge has done since it started, and how it finds new rows.
#[derive(Debug, Default)]
pub struct Counters {
    /// The database's clock, for measuring delays.
    pub clock: Clock,
    seen: AtomicU64,
    sent: AtomicU64,
    topic_rows: AtomicU64,
    delivered_topic_rows: AtomicU64,
    membership_changes: AtomicU64,
    delays: [AtomicU64; BUCKETS],
    delay_micros: AtomicU64,
    listening: Mutex<Option<Listening>>,
    news: Notify,
}

/// The listener's session, and how it finds new rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The backend's process id.
    pub pid: i32,
    pub role: String,
    pub watching: Watching,
    /// When `watching` last changed, or the session began.
    pub since: Moment,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows that the tail read.
    pub seen: u64,
    /// Rows that were marked as sent.
    pub sent: u64,
    /// How many rows had a delay within each of [`BOUNDS`] but not within the previous
    /// one. The last element counts those beyond all.
    pub delays: [u64; BUCKETS],
}

impl Totals {
    /// The difference to an earlier count.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            seen: self.seen - before.seen,
            sent: self.sent - before.sent,
            delays: array::from_fn(|bucket| self.delays[bucket] - before.delays[bucket]),
        }
    }
}

/// A histogram of the delays from `created_at` to a connection that was already open.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delays {
    /// Each bucket's bound in seconds, and the number of delays within it but not within
    /// the previous one. The last bound is infinite.
    pub buckets: [(f64, u64); BUCKETS],
    /// The sum of all delays in seconds.
    pub sum: f64,
    /// The number of delays.
    pub count: u64,
}

/// What was done for topics.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TopicCounts {
    /// Rows for topics that the tail read.
    pub topic_rows: u64,
    /// Rows for topics that were written, once for each connection.
    pub delivered_topic_rows: u64,
    /// Changes of memberships that the tail read.
    pub membership_changes: u64,
}

impl Counters {
    /// The tail read this many rows, of which some are for topics.
    pub fn read(&self, rows: usize, topic_rows: usize) {
        self.seen.fetch_add(rows as u64, Ordering::Relaxed);
        self.topic_rows
            .fetch_add(topic_rows as u64, Ordering::Relaxed);
    }

    pub fn memberships_changed(&self, changes: usize) {
        self.membership_changes
            .fetch_add(changes as u64, Ordering::Relaxed);
    }

    pub fn written_of_topics(&self, rows: u32) {
        self.delivered_topic_rows
            .fetch_add(rows.into(), Ordering::Relaxed);
    }

    pub fn topics(&self) -> TopicCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TopicCounts {
            topic_rows: load(&self.topic_rows),
            delivered_topic_rows: load(&self.delivered_topic_rows),
            membership_changes: load(&self.membership_changes),
        }
    }

    pub fn marked(&self, rows: u64) {
        self.sent.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows created at these times were written to a connection that was opened at
    /// `opened`. Older rows aren't counted: they waited for their user, not for the
    /// bridge.
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

    pub fn totals(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            seen: load(&self.seen),
            sent: load(&self.sent),
            delays: array::from_fn(|bucket| load(&self.delays[bucket])),
        }
    }

    /// The listener has a session, and finds new rows in this way.
    pub fn listens(&self, pid: i32, role: &str, watching: Watching) {
        let mut listening = self.listening.lock();
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

    /// The listener's session and how it finds new rows, once it has started.
    pub fn listening(&self) -> Option<Listening> {
        self.listening.lock().clone()
    }

    /// Resolves when [`listening`](Self::listening) has changed.
    pub async fn changed(&self) {
        self.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_counts_within_its_bound_alone() {
        let activity = Counters::default();
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
        let activity = Counters::default();
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
        let activity = Counters::default();
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
