//! Points of the tail that are on disk, which a replica can be asked for.
//!
//! After a crash, the log goes on from what was on disk. A point that was not could be
//! reached again by other transactions, and a replica that has replayed up to there would
//! prove nothing.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, watch};
use tokio_postgres::types::PgLsn;

use crate::domain::log_point::LogPoint;

#[derive(Debug)]
pub struct DurableTail {
    /// The point of a poll that isn't on disk yet. One is enough: the next is taken once this
    /// one is on disk.
    candidate: Mutex<Option<Point>>,
    published: watch::Sender<Option<Point>>,
    asker: AsyncMutex<()>,
}

/// The point of a poll that found all that was new.
#[derive(Clone, Debug)]
struct Point {
    poll: u64,
    point: Arc<LogPoint>,
}

impl Default for DurableTail {
    fn default() -> Self {
        Self {
            candidate: Mutex::default(),
            published: watch::Sender::new(None),
            asker: AsyncMutex::default(),
        }
    }
}

impl DurableTail {
    /// A poll has found all that was new, when the log was on disk up to `flushed`.
    pub fn complete(&self, poll: u64, point: LogPoint, flushed: PgLsn) {
        let mut candidate = self.candidate.lock();
        let point = Point {
            poll,
            point: Arc::new(point),
        };
        if point.point.inserted <= flushed {
            *candidate = None;
            self.published.send_replace(Some(point));
        } else if let Some(durable) = candidate.take_if(|it| it.point.inserted <= flushed) {
            self.published.send_replace(Some(durable));
            *candidate = Some(point);
        } else {
            candidate.get_or_insert(point);
        }
    }

    /// Another history begins.
    pub fn reset(&self) {
        *self.candidate.lock() = None;
        self.published.send_replace(None);
    }

    /// The last point, however old.
    pub fn last(&self) -> Option<Arc<LogPoint>> {
        let last = self.published.borrow();
        last.as_ref().map(|it| Arc::clone(&it.point))
    }

    /// Waits until no other stream asks for polls. Of ten thousand streams that wait for a point, one
    /// asks for all.
    pub async fn become_asker(&self) -> MutexGuard<'_, ()> {
        self.asker.lock().await
    }

    /// Waits for the point of this poll or of a later one.
    pub async fn since(&self, poll: u64) -> Option<Arc<LogPoint>> {
        let mut published = self.published.subscribe();
        let is_fresh = |it: &Option<Point>| it.as_ref().is_some_and(|it| it.poll >= poll);
        // The sender is not dropped before `self`.
        let found = published.wait_for(is_fresh).await.ok()?;
        found.as_ref().map(|it| Arc::clone(&it.point))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::domain::{history::History, snapshot::Snapshot};

    fn point(inserted: u64) -> LogPoint {
        LogPoint {
            history: History::default(),
            snapshot: Arc::new(Snapshot::default()),
            inserted: inserted.into(),
        }
    }

    fn last(tail: &DurableTail) -> Option<u64> {
        tail.last().map(|point| point.inserted.into())
    }

    #[tokio::test]
    async fn a_point_counts_once_it_is_on_disk() {
        let tail = DurableTail::default();
        tail.complete(1, point(100), 100.into());
        assert_eq!(last(&tail), Some(100));
        tail.complete(2, point(200), 150.into());
        assert_eq!(last(&tail), Some(100));
        assert!(tail.since(2).now_or_never().is_none());
        // Not replaced by later ones, of which none might ever be in time.
        tail.complete(3, point(300), 199.into());
        tail.complete(4, point(400), 200.into());
        assert_eq!(last(&tail), Some(200));
        assert!(tail.since(2).now_or_never().is_some());
        assert!(tail.since(3).now_or_never().is_none());
        tail.complete(5, point(500), 500.into());
        assert_eq!(last(&tail), Some(500));
    }

    #[test]
    fn nothing_from_before_a_crash_is_left() {
        let tail = DurableTail::default();
        tail.complete(1, point(100), 100.into());
        tail.complete(2, point(300), 200.into());
        tail.reset();
        assert_eq!(last(&tail), None);
        // The log may be longer than before by now.
        tail.complete(3, point(900), 800.into());
        assert_eq!(last(&tail), None);
    }
}
