//! Subscribers whose pages fail while others' don't: the relation that `TIDINGS_MEMBERSHIPS`
//! names raises an error for them, or takes too long.
//!
//! They must neither make the bridge look broken nor keep others waiting: their pages are
//! read one at a time, for all of them together. If pages fail for most subscribers and succeed
//! for none, it is no longer a matter of some.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use tracing::warn;

use super::Reads;
use crate::{domain::identity::Subscriber, runtime::log_throttle::LogThrottle};

/// How many pages of failing subscribers are read at once. Each may take as long as a query
/// is allowed to, so more would occupy the turns of others.
const AT_ONCE: usize = 1;

/// How long a subscriber counts as failing after the last attempt, unless a page succeeds.
const REMEMBERED: Duration = Duration::from_secs(600);

/// How many subscribers are remembered before forgotten ones are dropped. An entry takes
/// some 100 bytes.
const SWEPT_AT: usize = 1_024;

/// If pages fail for this many subscribers and succeed for none, they fail for everyone,
/// even if most streams are idle and need no pages.
const MANY: usize = 20;

/// Whom failing pages concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Others' pages succeed, or no other is needed.
    Some,
    Everyone,
}

#[derive(Debug)]
pub struct FailingSubscribers {
    state: Mutex<FailingState>,
    lane: Semaphore,
    log: LogThrottle,
}

impl Default for FailingSubscribers {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            lane: Semaphore::new(AT_ONCE),
            log: LogThrottle::default(),
        }
    }
}

#[derive(Debug, Default)]
struct FailingState {
    /// When each last failed.
    failed: HashMap<Subscriber, Instant>,
    /// Those that have failed since any page succeeded.
    in_a_row: HashSet<Subscriber>,
}

impl FailingState {
    fn extent(&self, connected: usize) -> Extent {
        let failing = self.in_a_row.len();
        match failing >= 2 && (failing >= MANY || 2 * failing > connected) {
            true => Extent::Everyone,
            false => Extent::Some,
        }
    }
}

impl FailingSubscribers {
    /// Waits until this subscriber may wait for a turn: at once, unless its pages fail. Hold
    /// the permit while the page is read.
    pub(super) async fn admit(&self, subscriber: &Subscriber) -> Option<SemaphorePermit<'_>> {
        let is_failing = self.state.lock().failed.contains_key(subscriber);
        match is_failing {
            // It is never closed.
            true => self.lane.acquire().await.ok(),
            false => None,
        }
    }

    /// A page of this subscriber failed, for a reason that may be the subscriber's own.
    /// `connected` is the number of subscribers.
    pub(super) fn fail(
        &self,
        subscriber: &Subscriber,
        connected: usize,
        reason: &str,
        reads: &Reads,
    ) -> Extent {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.failed.len() >= SWEPT_AT {
            state.failed.retain(|_, at| at.elapsed() < REMEMBERED);
        }
        state.failed.insert(subscriber.clone(), now);
        state.in_a_row.insert(subscriber.clone());
        let extent = state.extent(connected);
        if extent == Extent::Everyone {
            // It isn't theirs, so they take turns like everyone once it is over.
            state.failed.clear();
        }
        let failing = state.failed.len();
        drop(state);
        reads.failing.set(failing as i64);
        if extent == Extent::Some && self.log.count(now.into_std()).is_some() {
            warn!(
                subscribers = failing,
                reason,
                "pages of some subscribers can't be read, others are not affected; these wait and \
                 are retried: {reason}"
            );
        }
        extent
    }

    pub(super) fn succeed(&self, subscriber: &Subscriber, reads: &Reads) {
        let mut state = self.state.lock();
        if state.failed.is_empty() && state.in_a_row.is_empty() {
            return;
        }
        state.in_a_row.clear();
        state.failed.remove(subscriber);
        reads.failing.set(state.failed.len() as i64);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::domain::notification::UserId;

    fn subscriber(name: &str) -> Subscriber {
        Subscriber::User(UserId::parse(name).expect("a user"))
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_fail_are_read_one_at_a_time_and_nobody_else_waits() {
        let (failing, reads) = (FailingSubscribers::default(), Reads::default());
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(subscriber);
        for each in [&alice, &bob] {
            assert_eq!(failing.fail(each, 100, "raised", &reads), Extent::Some);
        }
        assert_eq!(reads.failing.get(), 2);
        let held = failing.admit(&alice).await;
        assert!(held.is_some());
        assert!(failing.admit(&bob).now_or_never().is_none());
        assert!(
            failing
                .admit(&carol)
                .now_or_never()
                .expect("no wait")
                .is_none()
        );
        drop(held);
        assert!(failing.admit(&bob).now_or_never().is_some());
        failing.succeed(&alice, &reads);
        assert!(
            failing
                .admit(&alice)
                .now_or_never()
                .expect("no wait")
                .is_none()
        );
        assert_eq!(reads.failing.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_most_and_succeeds_for_none_is_no_fault_of_theirs() {
        let (failing, reads) = (FailingSubscribers::default(), Reads::default());
        let fail = |number: usize, connected| {
            failing.fail(&subscriber(&number.to_string()), connected, "x", &reads)
        };
        // One alone says nothing about others.
        assert_eq!(fail(0, 1), Extent::Some);
        assert_eq!(fail(1, 4), Extent::Some);
        failing.succeed(&subscriber("other"), &reads);
        assert_eq!(fail(1, 3), Extent::Some);
        assert_eq!(fail(2, 3), Extent::Everyone);
        assert!(failing.admit(&subscriber("1")).await.is_none());
        failing.succeed(&subscriber("other"), &reads);
        let extents: Vec<_> = (0..MANY).map(|number| fail(number, 10_000)).collect();
        let (last, earlier) = extents.split_last().expect("some");
        assert!(earlier.iter().all(|extent| *extent == Extent::Some));
        assert_eq!(*last, Extent::Everyone);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_do_not_return_are_forgotten() {
        let (failing, reads) = (FailingSubscribers::default(), Reads::default());
        for number in 0..SWEPT_AT {
            failing.fail(
                &subscriber(&number.to_string()),
                usize::MAX / 4,
                "x",
                &reads,
            );
            failing.succeed(&subscriber("other"), &reads);
        }
        tokio::time::advance(REMEMBERED).await;
        failing.fail(&subscriber("last"), 100, "x", &reads);
        assert_eq!(reads.failing.get(), 1);
    }
}
