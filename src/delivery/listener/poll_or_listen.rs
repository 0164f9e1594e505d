//! Decides how the bridge finds new rows: it polls while rows flow and waits for the
//! doorbell when they don't, so that busy writers never have to send NOTIFY.
//!
//! ARCHITECTURE.md explains why no row is missed in between, and `docs/doorbell.pml` is a
//! model of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::{
    health::Watching,
    page_reader::{BellGeneration, BellState},
};

/// Rows found this soon after others are part of a flow.
const FLOWING: Duration = Duration::from_millis(4);

/// The same while other transactions are running: they may be writers that wait for each
/// other because they send NOTIFY. Rows then arrive only as fast as the disk takes
/// commits, one at a time.
const QUEUEING: Duration = Duration::from_millis(25);

/// A flow of this many polls wakes the bridge. At a hundred rows a second, for which
/// writers can easily send NOTIFY, polls hardly ever find rows that close together.
const FLOW_POLLS: u32 = 16;

/// After this long without rows, the bridge falls asleep.
const IDLE: Duration = Duration::from_millis(30);

/// While the bridge is awake, the time between the start of a poll that found nothing and
/// the next one.
const AWAKE_GAP: Duration = Duration::from_micros(500);

/// This much longer for each row found. The more rows flow, the more of them share the
/// cost of a poll, and busy writers need the CPU more than readers need a millisecond.
const LATER_BY_ROW: Duration = Duration::from_micros(250);

/// The longest interval between polls while rows flow.
const LONGEST_AWAKE: Duration = Duration::from_millis(5);

/// The poll interval when no rows arrive but the bridge can't sleep, because a
/// transaction that may not have sent NOTIFY is still open.
const IDLE_GAP: Duration = Duration::from_millis(5);

/// The minimum time between two attempts to sleep: each checks who is writing, which
/// costs more than a poll.
const SLEEP_AGAIN: Duration = Duration::from_millis(25);

/// How the bridge finds new rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// It polls, and writers need not send NOTIFY for it.
    Awake,
    /// Writers have been sending NOTIFY at least since the sequence got this value.
    Asleep(BellGeneration),
    /// Another bridge polls and sends what it reads. It also controls whether writers send
    /// NOTIFY.
    Following,
}

impl PollMode {
    /// The state after a poll that read this value of the sequence. If the value differs
    /// from the one with which the bridge fell asleep, there was a time in which writers
    /// did not send NOTIFY, so the bridge wakes.
    pub fn after(self, rings: Option<BellGeneration>) -> Self {
        match self {
            Self::Asleep(since) if rings == Some(since) => self,
            Self::Asleep(_) | Self::Awake => Self::Awake,
            Self::Following => Self::Following,
        }
    }

    /// Whether to sleep, given the result of telling writers to send NOTIFY and the value
    /// read by the poll after that.
    pub fn by(bell: BellState, rings: Option<BellGeneration>) -> Self {
        match bell.rings {
            Some(since) if !bell.writing => Self::Asleep(since).after(rings),
            _ => Self::Awake,
        }
    }
}

impl From<PollMode> for Watching {
    fn from(watch: PollMode) -> Self {
        match watch {
            PollMode::Awake => Self::Awake,
            PollMode::Asleep(_) => Self::Asleep,
            PollMode::Following => Self::Following,
        }
    }
}

/// What recent polls have found.
#[derive(Debug)]
pub struct Flow {
    /// When rows were last found.
    last: Instant,
    /// When a poll first found that no more had arrived. `None` as long as the bridge had
    /// no chance to poll.
    quiet: Option<Instant>,
    /// How many polls found rows soon after the previous ones. A poll that found rows
    /// later halves it.
    polls: u32,
    /// When the bridge last tried to sleep.
    tried: Option<Instant>,
}

impl Flow {
    /// No rows yet. Idle after the usual time.
    pub fn begins(now: Instant) -> Self {
        Self {
            last: now,
            quiet: None,
            polls: 0,
            tried: None,
        }
    }

    /// A poll has found rows, and this many transactions still running. `shared_gap` is the
    /// minimum time between polls that other bridges cause.
    pub fn found(&mut self, now: Instant, running: usize, shared_gap: Duration) {
        let soon = if running > 0 { QUEUEING } else { FLOWING };
        // Rows can't be found sooner than the bridge polls.
        let soon = soon + shared_gap;
        let is_flowing = now.saturating_duration_since(self.last) < soon;
        // A single pause, common on a busy machine, doesn't end a flow.
        self.polls = if is_flowing {
            self.polls + 1
        } else {
            self.polls / 2
        };
        self.last = now;
        self.quiet = None;
    }

    /// A poll has found nothing.
    pub fn found_nothing(&mut self, now: Instant) {
        self.quiet.get_or_insert(now);
    }

    /// Whether polling costs less than NOTIFY.
    pub fn wakes(&self) -> bool {
        self.polls >= FLOW_POLLS
    }

    /// Whether to try to sleep now. If so, the flow is over, and only another flow wakes
    /// the bridge.
    pub fn tries_to_sleep(&mut self, now: Instant) -> bool {
        let again = self.tried.map(|tried| tried + SLEEP_AGAIN);
        let tries = self.is_idle(now) && again.is_none_or(|again| again <= now);
        if tries {
            self.tried = Some(now);
            self.polls = 0;
        }
        tries
    }

    /// Whether nothing has arrived for long enough to sleep.
    fn is_idle(&self, now: Instant) -> bool {
        self.quiet
            .is_some_and(|quiet| now.saturating_duration_since(quiet) >= IDLE)
    }

    /// The time between the start of a poll that found this many rows and the next one,
    /// while awake. At least `shared_gap`.
    pub fn gap(&self, now: Instant, rows: usize, shared_gap: Duration) -> Duration {
        let own = if self.is_idle(now) {
            IDLE_GAP
        } else {
            let rows = u32::try_from(rows).unwrap_or(u32::MAX);
            let later = LATER_BY_ROW.saturating_mul(rows);
            (AWAKE_GAP + later).min(LONGEST_AWAKE)
        };
        own.max(shared_gap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is no other bridge.
    const ALONE: Duration = Duration::ZERO;

    /// The state after a second in which a row arrived `every` so often, while this many
    /// transactions were running.
    fn after_a_second(every: Duration, running: usize) -> (Flow, Instant) {
        let mut now = Instant::now();
        let (end, mut flow) = (now + Duration::from_secs(1), Flow::begins(now));
        while now < end {
            now += every;
            flow.found(now, running, ALONE);
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
        for poll in 0..200 {
            now += Duration::from_millis(if poll % 10 == 0 { 8 } else { 1 });
            flow.found(now, 0, ALONE);
        }
        assert!(flow.wakes());
    }

    #[test]
    fn sleep_that_did_not_come_is_tried_again_later() {
        let (mut flow, now) = after_a_second(Duration::from_millis(1), 0);
        let idle = now + IDLE;
        assert!(!flow.tries_to_sleep(idle), "it has not polled");
        flow.found_nothing(now);
        assert!(!flow.tries_to_sleep(now));
        assert!(flow.wakes());
        assert!(flow.tries_to_sleep(idle));
        assert!(!flow.wakes(), "it is over");
        assert!(!flow.tries_to_sleep(idle + IDLE_GAP));
        assert!(flow.tries_to_sleep(idle + SLEEP_AGAIN));
    }

    #[test]
    fn a_bridge_that_is_awake_stays_so_until_nothing_comes() {
        let (mut flow, now) = after_a_second(Duration::from_millis(10), 0);
        flow.found_nothing(now);
        assert!(!flow.is_idle(now + Duration::from_millis(10)));
        assert!(flow.is_idle(now + IDLE));
        assert!(flow.gap(now, 0, ALONE) < flow.gap(now + IDLE, 0, ALONE));
    }

    #[test]
    fn the_more_rows_flow_the_later_is_the_next_look() {
        let (flow, now) = after_a_second(Duration::from_millis(1), 0);
        assert_eq!(flow.gap(now, 0, ALONE), AWAKE_GAP);
        assert!(flow.gap(now, 1, ALONE) < flow.gap(now, 5, ALONE));
        assert_eq!(flow.gap(now, 1_000, ALONE), LONGEST_AWAKE);
    }

    #[test]
    fn bridges_that_poll_rarely_recognize_a_flow() {
        let shared_gap = Duration::from_millis(50);
        let (mut now, mut flow) = (Instant::now(), Flow::begins(Instant::now()));
        for _ in 0..=FLOW_POLLS {
            assert_eq!(flow.gap(now, 1_000, shared_gap), shared_gap);
            now += shared_gap;
            flow.found(now, 0, shared_gap);
        }
        assert!(flow.wakes());
    }
}
