//! When a stream sends its next heartbeat, and the timer that wakes it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// The heartbeat interval is divided into this many parts, and all heartbeats of a part
/// are sent together at its end. Ten thousand streams are then written to in groups of
/// about a hundred, instead of each waking the bridge separately.
const PARTS: u32 = 100;

/// A timer whose deadline can be moved.
#[derive(Debug)]
pub struct Alarm {
    at: Instant,
    /// Created when it is first polled: it belongs to the runtime that polls it, which
    /// isn't the one in which the stream was opened.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    pub fn at(at: Instant) -> Self {
        Self { at, sleep: None }
    }

    pub fn set(&mut self, at: Instant) {
        self.at = at;
        if let Some(sleep) = &mut self.sleep {
            sleep.as_mut().reset(at);
        }
    }

    /// Resolves once the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(())
    }
}

/// Schedules the heartbeats of all streams.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeats {
    began: Instant,
    every: Duration,
}

impl Heartbeats {
    /// Sends a heartbeat to a stream after `every` without an event.
    pub fn every(every: Duration) -> Self {
        Self {
            began: Instant::now(),
            every,
        }
    }

    /// The time of the next heartbeat if nothing is written from now on, rounded up to
    /// the end of its part.
    pub fn next(&self) -> Instant {
        self.after(self.began.elapsed())
    }

    fn after(&self, spoke: Duration) -> Instant {
        let part = nanoseconds(self.every / PARTS).max(1);
        let silent = nanoseconds(spoke + self.every);
        self.began + Duration::from_nanos(silent.div_ceil(part).saturating_mul(part))
    }
}

/// `u64` nanoseconds suffice for five hundred years.
fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn heartbeats_come_after_their_silence_and_together() {
        let every = Duration::from_secs(15);
        let heartbeats = Heartbeats::every(every);
        let mut times = BTreeSet::new();
        for spoke in (0..1_500).step_by(7).map(Duration::from_millis) {
            let next = heartbeats.after(spoke);
            let late = next - heartbeats.began - spoke - every;
            assert!(late < every / PARTS, "{late:?}");
            times.insert(next);
        }
        assert_eq!(times.len(), 11);
    }
}
