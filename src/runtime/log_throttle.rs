//! Limits how many lines recurring events write to the log. Neither a client nor an
//! outage may decide how many there are.
//!
//! This is for events whose number the reader should know: one line stands for all since
//! the previous one. As a last resort `monitoring::logging` limits every call site, at a
//! much higher rate.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most one line in this time for each kind of event.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Throttles log lines about an event that clients can cause. The first is logged
/// immediately; later lines are at least 10 s apart and carry the number of
/// events since the previous line.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<Suppressed>);

/// Events that haven't been logged yet.
#[derive(Debug, Default)]
struct Suppressed {
    count: u64,
    logged: Option<Instant>,
}

impl LogThrottle {
    /// Records one event. Returns the count to log, if a line is due.
    pub fn count(&self, now: Instant) -> Option<u64> {
        self.add(1, now)
    }

    /// Records several events. Returns the count to log, if a line is due.
    pub fn add(&self, times: u64, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        state.count += times;
        let is_time = state
            .logged
            .is_none_or(|logged| now.saturating_duration_since(logged) >= LOG_INTERVAL);
        is_time.then(|| {
            state.logged = Some(now);
            std::mem::take(&mut state.count)
        })
    }
}

/// Throttles log lines about an operation that fails and is retried: one line when the
/// reason changes, and one per 10 s while it lasts.
#[derive(Debug, Default)]
pub struct OutageLog {
    logged: Option<(String, Instant)>,
}

impl OutageLog {
    /// Records a failure. Returns whether to log it at a level that operators read.
    pub fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        let is_known = self.logged.as_ref().is_some_and(|(known, logged)| {
            known == reason && now.saturating_duration_since(*logged) < LOG_INTERVAL
        });
        if !is_known {
            self.logged = Some((reason.to_owned(), now));
        }
        !is_known
    }

    /// Whether a failure was recorded since the last success.
    pub fn is_on(&self) -> bool {
        self.logged.is_some()
    }

    /// Records a success. Returns whether a failure had been logged before.
    pub fn is_over(&mut self) -> bool {
        self.logged.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_at_once_and_then_of_all_since_at_most_every_ten_seconds() {
        let (rarely, start) = (LogThrottle::default(), Instant::now());
        let count = |seconds| rarely.count(start + Duration::from_secs(seconds));
        assert_eq!(count(0), Some(1));
        assert_eq!([count(0), count(1), count(9)], [None; 3]);
        assert_eq!(count(10), Some(4));
        assert_eq!(count(19), None);
        assert_eq!(count(60), Some(2));
    }

    #[test]
    fn an_outage_is_told_once_for_each_reason_and_now_and_then() {
        let (mut failing, start) = (OutageLog::default(), Instant::now());
        let mut fails =
            |reason, seconds| failing.is_news(reason, start + Duration::from_secs(seconds));
        assert!(fails("refused", 0));
        assert!(!fails("refused", 1) && !fails("refused", 9));
        assert!(fails("starting up", 9) && !fails("starting up", 18));
        assert!(fails("starting up", 19));
        assert!(failing.is_over() && !failing.is_over());
        assert!(failing.is_news("starting up", start + Duration::from_secs(20)));
    }
}
