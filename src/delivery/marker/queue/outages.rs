//! Failures of the database as a whole, in one lane.

use tokio::time::Instant;

use super::{RETRY_FIRST, RETRY_LONGEST};
use crate::runtime::backoff::Backoff;

/// Whether a lane has an outage.
#[derive(Debug)]
pub(super) struct Outages {
    pub(super) now: Option<Outage>,
    backoff: Backoff,
}

#[derive(Debug)]
pub(super) struct Outage {
    pub(super) since: Instant,
    pub(super) until: Instant,
    pub(super) reason: String,
}

impl Default for Outages {
    fn default() -> Self {
        Self {
            now: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
        }
    }
}

impl Outages {
    pub(super) fn begin(&mut self, reason: &str, now: Instant) {
        self.now = Some(Outage {
            since: self.now.as_ref().map_or(now, |outage| outage.since),
            until: now + self.backoff.next_delay(),
            reason: reason.to_owned(),
        });
    }

    /// Allows the next attempt at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.backoff.reset();
        if let Some(outage) = &mut self.now {
            outage.until = now;
        }
    }

    pub(super) fn end(&mut self) {
        self.now = None;
        self.backoff.reset();
    }
}
