//! How many bridges read the same table.
//!
//! What each of them does by the clock adds up: fifty bridges that poll every five
//! milliseconds are ten thousand polls per second. So each does it more rarely, the more
//! there are, and together they cost about what one bridge does.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Between two polls of a bridge, for each bridge. A single bridge needs no such pause.
const POLL_GAP: Duration = Duration::from_millis(1);

/// The longest such pause, in case that more bridges are counted than anyone runs.
const LONGEST_POLL_GAP: Duration = Duration::from_millis(100);

/// How often the time for which marks are collected is multiplied at most: to a second.
const MOST_COLLECTED: u32 = 50;

/// The number of bridges that are connected to the database, this one included.
#[derive(Debug)]
pub struct BridgeCount(AtomicU32);

impl Default for BridgeCount {
    fn default() -> Self {
        Self(AtomicU32::new(1))
    }
}

impl BridgeCount {
    pub fn set(&self, bridges: u32) {
        self.0.store(bridges.max(1), Ordering::Relaxed);
    }

    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// The minimum time between the starts of two polls.
    pub fn poll_gap(&self) -> Duration {
        match self.get() {
            1 => Duration::ZERO,
            bridges => (POLL_GAP * bridges).min(LONGEST_POLL_GAP),
        }
    }

    /// How much longer than a single bridge to collect marks: a statement for a hundred
    /// rows costs little more than one for two.
    pub fn collect_factor(&self) -> u32 {
        self.get().min(MOST_COLLECTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bridges_together_poll_about_as_often_as_a_few() {
        let bridges = BridgeCount::default();
        assert_eq!(bridges.poll_gap(), Duration::ZERO);
        assert_eq!(bridges.collect_factor(), 1);
        for count in [2, 10, 50, 100] {
            bridges.set(count);
            assert_eq!(bridges.poll_gap() / count, POLL_GAP);
        }
        bridges.set(u32::MAX);
        assert_eq!(bridges.poll_gap(), LONGEST_POLL_GAP);
        assert_eq!(bridges.collect_factor(), MOST_COLLECTED);
        bridges.set(0);
        assert_eq!(bridges.poll_gap(), Duration::ZERO);
    }
}
