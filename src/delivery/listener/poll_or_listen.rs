//! How the bridge learns of rows: it polls while they flow, and sleeps by the
//! doorbell when they don't, so that a busy writer never has to ring.
//!
//! ARCHITECTURE.md has the reasons why no row falls between the two, and
//! `docs/doorbell.pml` the model of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::{
    health::Watching,
    page_reader::{Ringing, Rings},
};

/// Rows that are found so soon after others are part of a flow.
const FLOWING: Duration = Duration::from_millis(4);

/// The same, while other transactions are running: they may be writers that wait
/// for each other, because they ring. Then rows come no faster than the disk
/// takes commits, one at a time.
const QUEUEING: Duration = Duration::from_millis(25);

/// A flow of so many looks wakes the bridge. A hundred rows a second, which
/// writers can well ring for, hardly ever come so close.
const FLOW_LOOKS: u32 = 16;

/// Without rows for so long, the bridge sleeps.
const IDLE: Duration = Duration::from_millis(30);

/// How long after a look the next one begins while the bridge is awake, if it
/// found nothing.
const AWAKE_LOOK: Duration = Duration::from_micros(500);

/// So much later for each row that it found: the more rows flow, the more of them
/// share what a look costs, and writers that are busy need the processor more
/// than readers need a millisecond.
const LATER_BY_ROW: Duration = Duration::from_micros(250);

/// The longest wait while rows flow.
const LONGEST_AWAKE: Duration = Duration::from_millis(5);

/// How often it looks when no rows come and it can't sleep, because a
/// transaction that may have skipped the bell is still open.
const IDLE_LOOK: Duration = Duration::from_millis(5);

/// How long after an attempt to sleep the next one may come: it asks who is
/// writing, which costs more than a look.
const SLEEP_AGAIN: Duration = Duration::from_millis(25);

/// How the bridge learns of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// It polls; writers need not ring for it.
    Awake,
    /// They ring, at least since this time began.
    Asleep(Rings),
}

impl Watch {
    /// What a look may rely on. Who sleeps by a time of ringing that is over wakes:
    /// there was another in which writers did not ring.
    pub fn after(self, look: Option<Rings>) -> Self {
        match self {
            Self::Asleep(since) if look == Some(since) => self,
            Self::Asleep(_) | Self::Awake => Self::Awake,
        }
    }

    /// Whether to sleep, by what was found when writers were told to ring and by
    /// the look after that.
    pub fn by(told: Ringing, look: Option<Rings>) -> Self {
        match told.rings {
            Some(since) if !told.writing => Self::Asleep(since).after(look),
            _ => Self::Awake,
        }
    }
}

impl From<Watch> for Watching {
    fn from(watch: Watch) -> Self {
        match watch {
            Watch::Awake => Self::Awake,
            Watch::Asleep(_) => Self::Asleep,
        }
    }
}

/// What the looks have found lately.
#[derive(Debug)]
pub struct Flow {
    /// When rows were found last.
    last: Instant,
    /// When it was first seen that no more had come. A bridge that had no chance to
    /// look has not seen it.
    quiet: Option<Instant>,
    /// Looks that found some, each soon after the one before; half as many after
    /// each that was not.
    looks: u32,
    /// When it was last tried to sleep.
    tried: Option<Instant>,
}

impl Flow {
    /// None yet; idle after the usual time.
    pub fn begins(now: Instant) -> Self {
        Self {
            last: now,
            quiet: None,
            looks: 0,
            tried: None,
        }
    }

    /// A look has found rows, and transactions that were still running.
    pub fn found(&mut self, now: Instant, running: usize) {
        let soon = if running > 0 { QUEUEING } else { FLOWING };
        let is_flowing = now.saturating_duration_since(self.last) < soon;
        // A single pause, as a busy machine makes them, doesn't end a flow.
        self.looks = if is_flowing {
            self.looks + 1
        } else {
            self.looks / 2
        };
        self.last = now;
        self.quiet = None;
    }

    /// A look has found nothing.
    pub fn found_nothing(&mut self, now: Instant) {
        self.quiet.get_or_insert(now);
    }

    /// Whether polling costs less than being rung for.
    pub fn wakes(&self) -> bool {
        self.looks >= FLOW_LOOKS
    }

    /// Whether to try to sleep now. Then the flow is over, and only another one
    /// wakes the bridge.
    pub fn tries_to_sleep(&mut self, now: Instant) -> bool {
        let again = self.tried.map(|tried| tried + SLEEP_AGAIN);
        let tries = self.is_idle(now) && again.is_none_or(|again| again <= now);
        if tries {
            self.tried = Some(now);
            self.looks = 0;
        }
        tries
    }

    /// Whether nothing has flowed for long enough to sleep.
    fn is_idle(&self, now: Instant) -> bool {
        self.quiet
            .is_some_and(|quiet| now.saturating_duration_since(quiet) >= IDLE)
    }

    /// How long after a look that found so many rows the next one begins, while
    /// awake.
    pub fn gap(&self, now: Instant, rows: usize) -> Duration {
        if self.is_idle(now) {
            return IDLE_LOOK;
        }
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        let later = LATER_BY_ROW.saturating_mul(rows);
        (AWAKE_LOOK + later).min(LONGEST_AWAKE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a second of rows that come `every` so often, while so many
    /// transactions are running.
    fn after_a_second(every: Duration, running: usize) -> (Flow, Instant) {
        let mut now = Instant::now();
        let (end, mut flow) = (now + Duration::from_secs(1), Flow::begins(now));
        while now < end {
            now += every;
            flow.found(now, running);
        }
        (flow, now)
    }

    #[test]
    fn a_trickle_is_slept_through_and_a_flow_is_not() {
        let (trickle, _) = after_a_second(Duration::from_millis(10), 0);
        assert!(!trickle.wakes());
        let (flow, _) = after_a_second(Duration::from_millis(2), 0);
        assert!(flow.wakes());
    }

    #[test]
    fn writers_that_queue_for_a_slow_disk_are_a_flow() {
        let (queue, _) = after_a_second(Duration::from_millis(10), 1);
        assert!(queue.wakes());
        let (trickle, _) = after_a_second(Duration::from_millis(50), 1);
        assert!(!trickle.wakes());
    }

    #[test]
    fn a_pause_now_and_then_does_not_end_a_flow() {
        let mut now = Instant::now();
        let mut flow = Flow::begins(now);
        for look in 0..200 {
            now += Duration::from_millis(if look % 10 == 0 { 8 } else { 1 });
            flow.found(now, 0);
        }
        assert!(flow.wakes());
    }

    #[test]
    fn sleep_that_did_not_come_is_tried_again_later() {
        let (mut flow, now) = after_a_second(Duration::from_millis(1), 0);
        let idle = now + IDLE;
        assert!(!flow.tries_to_sleep(idle), "it has not looked");
        flow.found_nothing(now);
        assert!(!flow.tries_to_sleep(now));
        assert!(flow.wakes());
        assert!(flow.tries_to_sleep(idle));
        assert!(!flow.wakes(), "it is over");
        assert!(!flow.tries_to_sleep(idle + IDLE_LOOK));
        assert!(flow.tries_to_sleep(idle + SLEEP_AGAIN));
    }

    #[test]
    fn a_bridge_that_is_awake_stays_so_until_nothing_comes() {
        let (mut flow, now) = after_a_second(Duration::from_millis(10), 0);
        flow.found_nothing(now);
        assert!(!flow.is_idle(now + Duration::from_millis(10)));
        assert!(flow.is_idle(now + IDLE));
        assert!(flow.gap(now, 0) < flow.gap(now + IDLE, 0));
    }

    #[test]
    fn the_more_rows_flow_the_later_is_the_next_look() {
        let (flow, now) = after_a_second(Duration::from_millis(1), 0);
        assert_eq!(flow.gap(now, 0), AWAKE_LOOK);
        assert!(flow.gap(now, 1) < flow.gap(now, 5));
        assert_eq!(flow.gap(now, 1_000), LONGEST_AWAKE);
    }
}
