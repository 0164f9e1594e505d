//! Limits the memory that all pages together may take.
//!
//! A page stays in memory until its stream has written it, which depends on the client.
//! When the limit is reached, the streams whose clients have gone longest without reading
//! are cut off. Those clients reconnect with their last ids and miss nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::warn;

use crate::runtime::log_throttle::LogThrottle;

/// The limit in bytes for all pages together: those that are being read and those that
/// are being written to clients. Some 250 pages of the usual size.
pub const PAGE_MEMORY: usize = 64 << 20;

/// A client that has read nothing for this long may be cut off to free its page's memory.
/// A healthy client reads a page within milliseconds; a slow one reads at least some
/// bytes.
const STALLED: Duration = Duration::from_millis(250);

/// A page is read no larger than the free memory divided by this, so that thousands of
/// slow clients have a small page each, rather than a few a large one.
const PART_OF_FREE: usize = 32;

#[derive(Debug)]
pub struct PageMemory {
    most: usize,
    state: Mutex<MemoryState>,
    freed: Notify,
    cut_off: LogThrottle,
}

#[derive(Debug, Default)]
struct MemoryState {
    used: usize,
    /// The part of `used` that belongs to streams that are being cut off.
    returning: usize,
    /// What waiting requests ask for.
    wanted: usize,
    next: u64,
    leases: BTreeMap<u64, LeaseState>,
}

#[derive(Debug)]
struct LeaseState {
    bytes: usize,
    /// When the client last read something. `None` while the page is being read from the
    /// database.
    progress: Option<Instant>,
    is_reclaimed: bool,
    owner: Arc<LeaseOwner>,
}

/// The stream that holds the page.
#[derive(Debug, Default)]
struct LeaseOwner {
    is_cut_off: AtomicBool,
    waker: AtomicWaker,
}

/// Memory for one page. Dropping it frees the memory.
#[derive(Debug)]
pub struct Lease {
    memory: Arc<PageMemory>,
    number: u64,
    owner: Arc<LeaseOwner>,
}

impl Default for PageMemory {
    fn default() -> Self {
        Self::of(PAGE_MEMORY)
    }
}

impl PageMemory {
    fn of(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
            freed: Notify::new(),
            cut_off: LogThrottle::default(),
        }
    }

    /// How large a page may be at the moment, `wanted` bytes at most.
    pub fn page_bytes(&self, wanted: usize) -> usize {
        let free = self.most.saturating_sub(self.state.lock().used);
        wanted.min(free / PART_OF_FREE).max(1)
    }

    pub fn used(&self) -> usize {
        self.state.lock().used
    }

    /// Waits until this many bytes are free, cutting off stalled clients if necessary.
    pub async fn reserve(self: &Arc<Self>, bytes: usize) -> Lease {
        self.state.lock().wanted += bytes;
        let _wanted = scopeguard::guard((), |()| self.state.lock().wanted -= bytes);
        loop {
            let freed = self.freed.notified();
            let attempt = self
                .state
                .lock()
                .try_reserve(bytes, self.most, Instant::now());
            match attempt {
                Reservation::Reserved { number, owner } => {
                    return Lease {
                        memory: Arc::clone(self),
                        number,
                        owner,
                    };
                }
                Reservation::Reclaimed(owners) => self.reclaim(&owners),
                Reservation::Wait => {}
            }
            // Or until more clients count as stalled.
            let _ = timeout(STALLED, freed).await;
        }
    }

    fn reclaim(&self, owners: &[Arc<LeaseOwner>]) {
        for owner in owners {
            owner.is_cut_off.store(true, Ordering::Release);
            owner.waker.wake();
            if let Some(count) = self.cut_off.count(Instant::now().into_std()) {
                warn!(
                    count,
                    "page memory is exhausted: disconnected {count} clients that don't read"
                );
            }
        }
    }
}

enum Reservation {
    Reserved {
        number: u64,
        owner: Arc<LeaseOwner>,
    },
    /// These streams have to end first.
    Reclaimed(Vec<Arc<LeaseOwner>>),
    /// No client is stalled, or enough are being cut off.
    Wait,
}

impl MemoryState {
    fn try_reserve(&mut self, bytes: usize, most: usize, now: Instant) -> Reservation {
        // A page larger than the limit passes alone.
        if self.leases.is_empty() || self.used + bytes <= most {
            let (number, owner) = (self.next, Arc::default());
            self.next += 1;
            self.used += bytes;
            let held = LeaseState {
                bytes,
                progress: None,
                is_reclaimed: false,
                owner: Arc::clone(&owner),
            };
            self.leases.insert(number, held);
            return Reservation::Reserved { number, owner };
        }
        let mut missing = (self.used + self.wanted).saturating_sub(most + self.returning);
        let mut stalled: Vec<_> = self
            .leases
            .values_mut()
            .filter(|held| !held.is_reclaimed)
            .filter_map(|held| Some((held.progress?, held)))
            .filter(|(progress, _)| now.saturating_duration_since(*progress) >= STALLED)
            .collect();
        stalled.sort_unstable_by_key(|(progress, _)| *progress);
        let mut owners = Vec::new();
        for (_, held) in stalled {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(held.bytes);
            self.returning += held.bytes;
            held.is_reclaimed = true;
            owners.push(Arc::clone(&held.owner));
        }
        if owners.is_empty() {
            Reservation::Wait
        } else {
            Reservation::Reclaimed(owners)
        }
    }

    fn resize(&mut self, number: u64, bytes: usize) {
        if let Some(held) = self.leases.get_mut(&number) {
            self.used = self.used - held.bytes + bytes;
            held.bytes = bytes;
        }
    }
}

impl Lease {
    /// The page has been read and takes this many bytes. From now on it waits for the
    /// client.
    pub fn hand_over(&self, bytes: usize) {
        let mut state = self.memory.state.lock();
        state.resize(self.number, bytes);
        drop(state);
        self.progress();
        self.memory.freed.notify_waiters();
    }

    /// The client has read something.
    pub fn progress(&self) {
        if let Some(held) = self.memory.state.lock().leases.get_mut(&self.number) {
            held.progress = Some(Instant::now());
        }
    }

    /// Resolves when the stream has to end to free the memory for another client.
    pub fn poll_cut_off(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.owner.waker.register(cx.waker());
        if self.owner.is_cut_off.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.memory.state.lock();
        if let Some(held) = state.leases.remove(&self.number) {
            state.used -= held.bytes;
            if held.is_reclaimed {
                state.returning -= held.bytes;
            }
        }
        drop(state);
        self.memory.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::time::sleep;

    use super::*;

    async fn handed_over(memory: &Arc<PageMemory>, bytes: usize) -> Lease {
        let lease = memory.reserve(bytes).await;
        lease.hand_over(bytes);
        lease
    }

    fn is_cut_off(lease: &Lease) -> bool {
        poll_fn(|cx| lease.poll_cut_off(cx))
            .now_or_never()
            .is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_that_has_taken_nothing_for_longest_makes_room() {
        let memory = Arc::new(PageMemory::of(100));
        let first = handed_over(&memory, 40).await;
        sleep(Duration::from_millis(1)).await;
        let second = handed_over(&memory, 40).await;
        sleep(STALLED).await;
        first.progress();
        let mut third = Box::pin(memory.reserve(40));
        assert!((&mut third).now_or_never().is_none());
        assert!(is_cut_off(&second) && !is_cut_off(&first));
        drop(second);
        let third = third.await;
        assert_eq!(memory.used(), 80);
        drop((first, third));
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_clients_are_cut_off_than_room_is_needed() {
        let memory = Arc::new(PageMemory::of(100));
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(handed_over(&memory, 10).await);
        }
        sleep(STALLED).await;
        let mut asked: Vec<_> = (0..3).map(|_| Box::pin(memory.reserve(10))).collect();
        for one in &mut asked {
            assert!(one.now_or_never().is_none());
        }
        held.retain(|lease| !is_cut_off(lease));
        assert_eq!(held.len(), 7);
        for one in asked {
            held.push(one.await);
        }
        assert_eq!(memory.used(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_keeps_its_page_and_others_wait() {
        let memory = Arc::new(PageMemory::of(100));
        let reading = handed_over(&memory, 100).await;
        let asked = tokio::spawn({
            let memory = Arc::clone(&memory);
            async move { memory.reserve(50).await }
        });
        for _ in 0..100 {
            sleep(STALLED / 2).await;
            reading.progress();
        }
        assert!(!asked.is_finished() && !is_cut_off(&reading));
        drop(reading);
        drop(asked.await.expect("no panic"));
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn pages_are_smaller_the_less_memory_is_free() {
        let memory = Arc::new(PageMemory::of(32 * 100));
        assert_eq!(memory.page_bytes(80), 80);
        let lease = memory.reserve(32 * 50).await;
        assert_eq!(memory.page_bytes(80), 50);
        // A page larger than the limit passes alone.
        drop(lease);
        let lease = memory.reserve(1 << 20).await;
        assert_eq!(memory.page_bytes(80), 1);
        drop(lease);
    }
}
