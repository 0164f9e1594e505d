//! Exponential backoff with jitter.

use std::time::Duration;

/// Doubles the delay after each failure, with jitter, so that bridges that lost the same
/// database don't all reconnect at the same moment.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at about `first` and never exceeds `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The delay before the next attempt: random, between half and all of a span that
    /// doubles each time.
    pub fn next_delay(&mut self) -> Duration {
        let delay = jittered(self.next);
        self.next = (self.next * 2).min(self.longest);
        delay
    }

    /// Starts over. Call it only after a success that proves that the problem is gone.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random duration between half of `span` and `span`.
pub fn jittered(span: Duration) -> Duration {
    span.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_start_over_after_a_reset() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, longest);
        for span in [100, 200, 400, 800, 1_000, 1_000].map(Duration::from_millis) {
            let delay = backoff.next_delay();
            assert!((span / 2..=span).contains(&delay), "{delay:?} for {span:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }
}
