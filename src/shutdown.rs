//! When to stop: SIGTERM or SIGINT.

use std::{future::Future, io};

use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process is asked to stop. The signals are caught from the
/// moment of the call on.
///
/// # Errors
///
/// If the system refuses a signal handler.
pub fn requested() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
