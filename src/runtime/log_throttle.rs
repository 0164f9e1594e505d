//! How often the log is told of what comes again and again: how many lines are
//! written must be neither a stranger's choice nor that of an outage.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The log has at most one line in this time for each such thing.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Of something that anybody can make happen, the log is told at once, and then of
/// all since, now and then.
#[derive(Debug, Default)]
pub struct Rarely(Mutex<Untold>);

/// What the log doesn't know yet.
#[derive(Debug, Default)]
struct Untold {
    count: u64,
    told: Option<Instant>,
}

impl Rarely {
    /// It has happened: how often, if it is time to tell.
    pub fn count(&self, now: Instant) -> Option<u64> {
        self.add(1, now)
    }

    /// It has happened so many times: how often, if it is time to tell.
    pub fn add(&self, times: u64, now: Instant) -> Option<u64> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.count += times;
        let is_time = untold
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        is_time.then(|| {
            untold.told = Some(now);
            std::mem::take(&mut untold.count)
        })
    }
}

/// What fails and is tried again: told once for each reason, and now and then while
/// it lasts.
#[derive(Debug, Default)]
pub struct Failing {
    told: Option<(String, Instant)>,
}

impl Failing {
    /// It has failed: whether that is worth a line for whoever reads no other.
    pub fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        let is_known = self.told.as_ref().is_some_and(|(known, told)| {
            known == reason && now.saturating_duration_since(*told) < TELL_EVERY
        });
        if !is_known {
            self.told = Some((reason.to_owned(), now));
        }
        !is_known
    }

    /// It works again: whether the log has a line that it fails.
    pub fn is_over(&mut self) -> bool {
        self.told.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_at_once_and_then_of_all_since_at_most_every_ten_seconds() {
        let (rarely, start) = (Rarely::default(), Instant::now());
        let tell = |seconds| rarely.count(start + Duration::from_secs(seconds));
        assert_eq!(tell(0), Some(1));
        assert_eq!([tell(0), tell(1), tell(9)], [None; 3]);
        assert_eq!(tell(10), Some(4));
        assert_eq!(tell(19), None);
        assert_eq!(tell(60), Some(2));
    }

    #[test]
    fn an_outage_is_told_once_for_each_reason_and_now_and_then() {
        let (mut failing, start) = (Failing::default(), Instant::now());
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
