//! Limits the lines per second of each call site: a client that floods the bridge must
//! not fill its disk too.
//!
//! This is the last resort, for lines that were not expected to recur. Where a client can
//! cause many events, [`LogThrottle`](crate::runtime::log_throttle::LogThrottle) combines
//! them into one line with their number.

use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier, info};
use tracing_subscriber::layer::{Context, Layer};

/// Lines per second and call site. Enough to see what they are about; with 100 to 200
/// bytes each, and some dozens of call sites that strangers can trigger, a disk takes
/// months to fill.
const LINES_A_SECOND: u32 = 20;

/// One per process, as the subscriber is.
static KINDS: LazyLock<Mutex<Kinds>> = LazyLock::new(Mutex::default);

/// Suppresses the lines of call sites that log too many. An operator who enables
/// [`Level::TRACE`] gets all of its lines.
pub struct Flood;

impl<S: Subscriber> Layer<S> for Flood {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let kind = event.metadata();
        *kind.level() == Level::TRACE || KINDS.lock().admit(kind, Instant::now())
    }
}

/// Logs how many lines were suppressed since the last call.
pub fn report() {
    // Logged after the lock is released, because these are lines too.
    let suppressed = KINDS.lock().take_suppressed();
    for (kind, count) in suppressed {
        let (module, line) = (kind.target(), kind.line().unwrap_or_default());
        // `left_out` and `of` are the names of earlier releases.
        info!(
            suppressed = count,
            module,
            line,
            left_out = count,
            of = module,
            "left out {count} lines of {module} that were similar to earlier ones"
        );
    }
}

/// Bounded by the number of call sites in the code.
#[derive(Debug, Default)]
struct Kinds(HashMap<Identifier, Kind>);

#[derive(Debug)]
struct Kind {
    metadata: &'static Metadata<'static>,
    second: Instant,
    lines: u32,
    suppressed: u64,
}

impl Kinds {
    /// Whether a line of this call site may be logged now. If not, it is counted.
    fn admit(&mut self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let kind = self.0.entry(metadata.callsite()).or_insert(Kind {
            metadata,
            second: now,
            lines: 0,
            suppressed: 0,
        });
        if now.saturating_duration_since(kind.second) >= Duration::from_secs(1) {
            (kind.second, kind.lines) = (now, 0);
        }
        let is_admitted = kind.lines < LINES_A_SECOND;
        if is_admitted {
            kind.lines += 1;
        } else {
            kind.suppressed += 1;
        }
        is_admitted
    }

    /// The number of suppressed lines per call site since the last call.
    fn take_suppressed(&mut self) -> Vec<(&'static Metadata<'static>, u64)> {
        let kinds = self.0.values_mut().filter(|kind| kind.suppressed > 0);
        kinds
            .map(|kind| (kind.metadata, std::mem::take(&mut kind.suppressed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::{subscriber::with_default, warn};
    use tracing_subscriber::{layer::SubscriberExt, registry};

    use super::*;

    /// Records the metadata of all events.
    #[derive(Clone, Default)]
    struct Witness(Arc<Mutex<Vec<&'static Metadata<'static>>>>);

    impl<S: Subscriber> Layer<S> for Witness {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().push(event.metadata());
        }
    }

    fn two_kinds() -> [&'static Metadata<'static>; 2] {
        let witness = Witness::default();
        with_default(registry().with(witness.clone()), || {
            warn!(name: "one", "a line");
            warn!(name: "other", "another line");
        });
        let kinds = witness.0.lock().clone();
        kinds.try_into().expect("two")
    }

    #[test]
    fn of_each_kind_so_many_lines_a_second_are_written_and_the_others_counted() {
        let ([one, other], mut kinds) = (two_kinds(), Kinds::default());
        let start = Instant::now();
        let mut admitted = |kind, seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            (0..100).filter(|_| kinds.admit(kind, now)).count()
        };
        let limit = LINES_A_SECOND as usize;
        assert_eq!(admitted(one, 0), limit);
        assert_eq!(admitted(other, 0), limit, "another kind is another matter");
        assert_eq!(admitted(one, 1), limit);
        let mut suppressed = kinds.take_suppressed();
        suppressed.sort_by_key(|(kind, _)| kind.name());
        let counts = suppressed.iter().map(|(kind, count)| (kind.name(), *count));
        let each = 100 - u64::from(LINES_A_SECOND);
        assert_eq!(
            counts.collect::<Vec<_>>(),
            [("one", 2 * each), ("other", each)]
        );
        assert!(kinds.take_suppressed().is_empty(), "it was reported");
    }
}
