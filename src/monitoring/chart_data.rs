//! The last fifteen minutes of the bridge, for the charts of the operator's page.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::{delivery::counters::Delays, monitoring::stats::Stats};

/// The page polls as often as this.
const EVERY: Duration = Duration::from_secs(5);

/// Fifteen minutes, about 10 KB.
const SAMPLES: usize = 180;

/// The bridge within one interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// When the interval ended, in milliseconds since 1970.
    at_ms: u64,
    /// Open streams at the end.
    connections: usize,
    /// Rows written to sockets.
    delivered_per_second: f64,
    /// Half of the rows, and 99 % of them, took at most so long from `created_at` to the
    /// socket. `None` if no row was delivered live.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Rows in the queues of streams at the end.
    waiting_rows: usize,
}

/// What is counted at one moment.
#[derive(Clone, Debug)]
struct Counts {
    connections: usize,
    delivered: u64,
    delays: Delays,
    waiting_rows: usize,
}

#[derive(Debug, Default)]
pub struct ChartData(Mutex<VecDeque<Sample>>);

impl ChartData {
    /// The samples, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        let samples = self.0.lock();
        samples.iter().copied().collect()
    }

    /// Takes samples until it is dropped.
    pub async fn record(self: Arc<Self>, stats: Arc<Stats>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut before = Counts::of(&stats);
        loop {
            ticks.tick().await;
            let now = Counts::of(&stats);
            self.add(now.since(&before, EVERY));
            before = now;
        }
    }

    fn add(&self, sample: Sample) {
        let mut samples = self.0.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}

impl Counts {
    fn of(stats: &Stats) -> Self {
        Self {
            connections: stats.hub.connections(),
            delivered: stats.marks.counts().delivered,
            delays: stats.activity.delays(),
            waiting_rows: stats.hub.audience().waiting_rows,
        }
    }

    fn since(&self, before: &Self, elapsed: Duration) -> Sample {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let delivered = self.delivered.saturating_sub(before.delivered);
        Sample {
            at_ms: at.map_or(0, |at| at.as_millis() as u64),
            connections: self.connections,
            delivered_per_second: delivered as f64 / elapsed.as_secs_f64(),
            p50_ms: quantile(&before.delays, &self.delays, 0.5),
            p99_ms: quantile(&before.delays, &self.delays, 0.99),
            waiting_rows: self.waiting_rows,
        }
    }
}

/// The delay in milliseconds that this share of the rows between two counts did not exceed,
/// interpolated within its bucket. Beyond the last bound it is that bound.
fn quantile(before: &Delays, now: &Delays, share: f64) -> Option<f64> {
    let buckets = now.buckets.iter().zip(&before.buckets);
    let counts = buckets.map(|(&(bound, now), &(_, before))| (bound, now.saturating_sub(before)));
    let counts: Vec<(f64, u64)> = counts.collect();
    let rows: u64 = counts.iter().map(|(_, count)| count).sum();
    let (mut rank, mut low) = (share * rows as f64, 0.0);
    for (bound, count) in counts {
        let count = count as f64;
        if count > 0.0 && rank <= count {
            let high = if bound.is_finite() { bound } else { low };
            return Some(1_000.0 * (low + (high - low) * rank / count));
        }
        rank -= count;
        low = bound;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::counters::Counters;

    fn counts(delivered: u64, delays: Delays) -> Counts {
        Counts {
            connections: 1,
            delivered,
            delays,
            waiting_rows: 0,
        }
    }

    #[test]
    fn a_sample_is_of_its_interval_alone() {
        let none = Counters::default().delays();
        let mut before = none.clone();
        before.buckets[9].1 = 1_000;
        let mut now = before.clone();
        // Of a hundred rows 98 took 1 to 2 ms, one took 10 to 20 ms, and one more than a minute.
        now.buckets[3].1 = 98;
        now.buckets[6].1 = 1;
        now.buckets[17].1 = 1;
        let sample = counts(600, now).since(&counts(500, before.clone()), EVERY);
        assert!((sample.delivered_per_second - 20.0).abs() < 1e-9);
        let p50 = sample.p50_ms.expect("rows");
        assert!((1.4..1.6).contains(&p50), "{p50}");
        assert_eq!(sample.p99_ms, Some(20.0));
        let silent = counts(500, before.clone()).since(&counts(500, before), EVERY);
        assert_eq!((silent.p50_ms, silent.p99_ms), (None, None));
        assert_eq!(quantile(&none, &none, 0.5), None);
    }

    #[test]
    fn it_keeps_fifteen_minutes() {
        let history = ChartData::default();
        let none = counts(0, Counters::default().delays());
        for connections in 0..SAMPLES + 7 {
            let now = Counts {
                connections,
                ..none.clone()
            };
            history.add(now.since(&none, EVERY));
        }
        let samples = history.samples();
        assert_eq!(samples.len() as u32 * EVERY.as_secs() as u32, 15 * 60);
        assert_eq!(samples[0].connections, 7);
    }
}
