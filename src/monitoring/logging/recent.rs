//! Keeps the last warnings and errors for the operator's page.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Serialize;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Number of lines that are kept.
const KEPT: usize = 30;

/// Maximum size of a line: a message is a sentence or two.
const LINE_BYTES: usize = 1_000;

/// One per process, as the subscriber is.
static LINES: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());
static ERRORS: AtomicU64 = AtomicU64::new(0);
static WARNINGS: AtomicU64 = AtomicU64::new(0);

/// A line of the log: its message, which is complete without the fields.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Milliseconds since 1970.
    at_ms: u64,
    level: &'static str,
    message: String,
}

/// The last errors and warnings, newest first.
pub fn recent() -> Vec<Line> {
    LINES.lock().iter().rev().cloned().collect()
}

/// How many errors and warnings were logged, by level.
pub fn counted() -> [(&'static str, u64); 2] {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    [("error", count(&ERRORS)), ("warn", count(&WARNINGS))]
}

/// The layer that keeps warnings and errors.
pub struct Recent;

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (level, counter) = match *event.metadata().level() {
            Level::ERROR => ("error", &ERRORS),
            Level::WARN => ("warn", &WARNINGS),
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut message = Message(String::new());
        event.record(&mut message);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = Line {
            at_ms: now.unwrap_or_default().as_millis() as u64,
            level,
            message: message.cut(),
        };
        let mut lines = LINES.lock();
        while lines.len() >= KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// Extracts the message from an event's fields.
struct Message(String);

impl Message {
    fn cut(mut self) -> String {
        let end = self.0.floor_char_boundary(LINE_BYTES);
        self.0.truncate(end);
        self.0
    }
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}
