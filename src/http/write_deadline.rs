//! The deadline of writes that make no progress.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep};

use crate::http::sockets::CLIENT_LIMIT;

/// The deadline of a writer that is waiting for its client. It takes only a pointer while
/// there is nothing to wait for.
#[derive(Debug, Default)]
pub struct Stall(Option<Pin<Box<Sleep>>>);

impl Stall {
    /// Call this when the client has read something, or there is nothing to read.
    pub fn end(&mut self) {
        self.0 = None;
    }

    /// Poll this while the client reads nothing. Resolves after [`CLIENT_LIMIT`] without
    /// a call of [`end`](Self::end).
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Created on the first poll: a timer belongs to the runtime in which it is
        // created, and must belong to the one that waits.
        let deadline = self.0.get_or_insert_with(|| Box::pin(sleep(CLIENT_LIMIT)));
        deadline.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::time::{Instant, advance, timeout};

    use super::*;

    /// The resolution of tokio's timers.
    const TICK: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_stall_expires_after_the_limit_and_starts_again_after_progress() {
        let mut stall = Stall::default();
        let almost = CLIENT_LIMIT - TICK;
        for _ in 0..3 {
            let waiting = timeout(almost, poll_fn(|cx| stall.poll_expired(cx))).await;
            assert!(waiting.is_err(), "expired early");
            stall.end();
            advance(CLIENT_LIMIT).await;
        }
        let start = Instant::now();
        poll_fn(|cx| stall.poll_expired(cx)).await;
        let took = start.elapsed();
        assert!(
            (CLIENT_LIMIT..=CLIENT_LIMIT + TICK).contains(&took),
            "{took:?}"
        );
    }
}
