//! The measurements, one section per file.

pub mod cluster;
pub mod fan_out;
pub mod flood;
pub mod growth;
pub mod latency;
pub mod memory;
pub mod peers;
pub mod prune;
mod returning;
pub mod storm;
pub mod topics;
pub mod writers;

use std::time::Duration;

use crate::report::Counts;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Enough to check that everything works: all sections in two minutes.
    Quick,
    /// Enough for reliable figures.
    Full,
}

impl Size {
    pub fn choose<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

/// How long to wait for overdue events. What arrives later counts as missing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The difference between two counts of the same streams.
pub fn between(earlier: Counts, later: Counts) -> Counts {
    Counts {
        expected: later.expected - earlier.expected,
        received: later.received - earlier.received,
        missing: later.missing.saturating_sub(earlier.missing),
        repeated: later.repeated - earlier.repeated,
        wrong_user: later.wrong_user - earlier.wrong_user,
    }
}
