//! One clock for all threads: nanoseconds since the program began.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self(BEGIN.elapsed())
    }

    /// So much later.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }

    /// How long after `earlier` it is; nothing if it isn't.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns not before it. Blocks the thread: the runtime's own timers are a
    /// millisecond wide, which is as much as what is measured.
    pub fn wait(self) {
        let left = self.since(Self::now());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
    }
}

/// Lets threads that this one starts sleep as exactly as they can: by default
/// Linux adds up to 50 µs, to save power.
pub fn fine_sleep() {
    // Elsewhere there is no such file, and sleep is as exact as it is.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
}
