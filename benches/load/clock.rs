//! One clock for all threads: time since the program started.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Self {
        Self(BEGIN.elapsed())
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }

    /// The time since `earlier`, or zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Blocks the thread until this moment. The runtime's own timers have a resolution of
    /// a millisecond, which is as much as what is measured.
    pub fn wait(self) {
        let left = self.since(Self::now());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}

/// Makes sleeps precise in the threads that this one starts: by default, Linux adds up to
/// 50 µs to save power.
pub fn fine_sleep() {
    // Other systems don't have this file; there, sleep is as precise as it gets.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
}
