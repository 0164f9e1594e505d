//! Logs panics. The default hook writes to standard error directly: not in the log's
//! format, and it blocks if standard error is not read.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    panic, thread,
};

use tracing::error;

use crate::runtime::tasks;

/// Logs each panic once, as an error, with the task or thread and the location.
pub fn log() {
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let what = match tasks::current() {
            Some(task) => format!("the {task}"),
            None => format!("the thread {}", thread.name().unwrap_or("without a name")),
        };
        let location = panic.location().map(ToString::to_string);
        let location = location.unwrap_or_default();
        let reason = text(panic.payload());
        // Captured if `RUST_BACKTRACE` is set.
        let backtrace = Backtrace::capture();
        let trace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
        error!(
            location,
            // The name of earlier releases.
            place = location,
            backtrace = trace.as_ref().map(tracing::field::display),
            "{what} panicked at {location}; this is a bug, please report it: {reason}"
        );
    }));
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(owned).unwrap_or("no reason was given")
}
