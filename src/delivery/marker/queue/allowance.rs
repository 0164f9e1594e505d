//! Limits how many statements for held rows may fail.

use std::time::Duration;

use tokio::time::Instant;

use super::MarkOutcome;

/// How many statements for held rows may fail in a burst. Finding one failing row among
/// [`super::ROWS_AT_ONCE`] takes some ten.
const FAILURES: f64 = 60.0;

/// How many of those are reserved for finding failing rows among suspects. Retries of
/// rows that are known to fail only use the rest.
pub(super) const FAILURES_RESERVED: f64 = 30.0;

/// How many statements for held rows may fail per second while nothing can be marked.
/// Each is an error in the server's log.
const FAILURES_PER_SECOND: f64 = 10.0;

/// For every this many rows that were marked, one more statement may fail: if most rows
/// can be marked, failing ones are found as fast as they arrive.
const MARKED_PER_FAILURE: f64 = 4.0;

/// How many statements may still fail.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    counted: Option<Instant>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            left: FAILURES,
            counted: None,
        }
    }
}

impl Allowance {
    /// When a statement may fail without using the reserved failures.
    pub(super) fn ready(&self, reserved: f64, now: Instant) -> Instant {
        let missing = 1.0 + reserved - self.left;
        match self.counted {
            Some(counted) if missing > 0.0 => {
                counted + Duration::from_secs_f64(missing / FAILURES_PER_SECOND)
            }
            _ => now,
        }
    }

    pub(super) fn count(&mut self, outcome: &MarkOutcome, now: Instant) {
        let passed = self.counted.map_or(Duration::MAX, |counted| {
            now.saturating_duration_since(counted)
        });
        let earned = passed.as_secs_f64() * FAILURES_PER_SECOND;
        self.left = (self.left + earned).min(FAILURES);
        self.counted = Some(now);
        if let MarkOutcome::RowFailed(_) | MarkOutcome::TimedOut(_) = outcome {
            self.left -= 1.0;
        }
    }

    pub(super) fn earn(&mut self, marked: usize) {
        let earned = marked as f64 / MARKED_PER_FAILURE;
        self.left = (self.left + earned).min(FAILURES);
    }
}
