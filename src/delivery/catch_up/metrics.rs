//! Metrics of page reads.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tokio::time::Instant;

/// Histogram bounds in seconds. A page normally takes a few milliseconds; a query times
/// out after 10 s.
const SECONDS: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// Counts pages and measures how long streams wait for them.
#[derive(Clone, Debug)]
pub struct Reads {
    /// From the request to the page, including the wait for a turn and all retries.
    pub seconds: Histogram,
    /// Streams that are waiting for a page.
    pub wanted: Gauge,
    /// Pages of rows that the bridge still had, and for which no query was needed.
    pub recent: Counter,
    /// Rows in the pages that were read.
    pub rows: Counter,
    /// Failed reads.
    pub failures: Counter,
    /// Subscribers whose pages fail while others' don't.
    pub failing: Gauge,
}

impl Default for Reads {
    fn default() -> Self {
        Self {
            seconds: Histogram::new(SECONDS),
            wanted: Gauge::default(),
            recent: Counter::default(),
            rows: Counter::default(),
            failures: Counter::default(),
            failing: Gauge::default(),
        }
    }
}

/// A stream's wait for a page. Dropping it ends the wait, with or without a page.
#[derive(Debug)]
pub struct Wait<'a> {
    reads: &'a Reads,
    began: Instant,
}

impl Reads {
    pub fn begin(&self) -> Wait<'_> {
        self.wanted.inc();
        Wait {
            reads: self,
            began: Instant::now(),
        }
    }
}

impl Wait<'_> {
    pub fn end(self, rows: usize) {
        self.reads
            .seconds
            .observe(self.began.elapsed().as_secs_f64());
        self.reads.rows.inc_by(rows as u64);
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.reads.wanted.dec();
    }
}
