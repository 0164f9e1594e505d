//! Lets a stream wait until the tail has everything that was committed before it asked.
//!
//! A client may return because something was sent to it, and expects that before
//! `tidings.caught-up`. However many ask at once, they wait for the same poll.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, watch};

#[derive(Debug)]
pub struct FreshTail {
    /// The number of polls that have begun.
    begun: AtomicU64,
    /// The last poll that found all that was new, and whose rows were published.
    published: watch::Sender<u64>,
    asked: Notify,
}

impl Default for FreshTail {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            published: watch::Sender::new(0),
            asked: Notify::new(),
        }
    }
}

impl FreshTail {
    /// A poll begins: call it before the statement is sent. Returns its number.
    pub fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// What this poll found was published, and it left nothing.
    pub fn publish(&self, poll: u64) {
        self.published.send_replace(poll);
    }

    /// Resolves when a stream waits for a poll. A listener that is awake can ignore it.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Asks for a poll, and returns its number: one that begins from now on.
    pub fn ask(&self) -> u64 {
        let wanted = self.begun.load(Ordering::SeqCst) + 1;
        self.asked.notify_one();
        wanted
    }

    /// Waits for a poll that begins from now on.
    pub async fn after_now(&self) {
        let mut published = self.published.subscribe();
        let wanted = self.ask();
        // The sender is not dropped before `self`.
        let _ = published.wait_for(|&poll| poll >= wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_a_poll_that_began_later_is_fresh() {
        let tail = FreshTail::default();
        let running = tail.begin();
        let mut first = pin!(tail.after_now());
        assert!(first.as_mut().now_or_never().is_none());
        assert!(tail.asked().now_or_never().is_some());
        tail.publish(running);
        assert!(first.as_mut().now_or_never().is_none());
        // One that left rows isn't published.
        tail.begin();
        let complete = tail.begin();
        let mut second = pin!(tail.after_now());
        assert!(second.as_mut().now_or_never().is_none());
        tail.publish(complete);
        assert!(first.as_mut().now_or_never().is_some());
        assert!(second.as_mut().now_or_never().is_none());
    }
}
