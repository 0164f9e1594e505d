//! Handles the signals of the process: SIGTERM and SIGINT request a shutdown, SIGHUP
//! requests a reload of files.
//!
//! A dedicated thread catches them, and ends the process if the orderly shutdown exceeds
//! its limit. So neither a task that blocks a thread nor a system call that never returns
//! can keep the process alive.

use std::{future::Future, io, process, sync::Arc, thread, time::Duration};

use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::monitoring::logging;

/// How long stopping may take until [`Shutdown::allow`] sets a limit: nothing has been
/// started yet that must be finished.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A second SIGTERM or SIGINT ends the process immediately, but not within this time
/// after the first: shells, `sudo` and process managers may send one signal twice, to the
/// process and to its group.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The signals that the process catches.
#[derive(Debug)]
pub struct Shutdown {
    requested: CancellationToken,
    hangups: Hangups,
    limit: watch::Sender<Duration>,
}

/// Occurrences of SIGHUP. Several that arrive together count as one.
#[derive(Clone, Debug, Default)]
pub struct Hangups(Arc<Notify>);

impl Hangups {
    /// Resolves at the next SIGHUP, or immediately if one has arrived since the last
    /// call.
    pub async fn next(&self) {
        self.0.notified().await;
    }

    fn came(&self) {
        self.0.notify_one();
    }
}

impl Shutdown {
    /// Starts to catch the signals. If stopping takes too long, the process ends with
    /// `exit_code`.
    ///
    /// # Errors
    ///
    /// If the system refuses a signal handler or a thread.
    pub fn watch(exit_code: i32) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let mut caught = Caught {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        drop(entered);
        let (limit, allowed) = watch::channel(AT_ONCE);
        let shutdown = Self {
            requested: CancellationToken::new(),
            hangups: Hangups::default(),
            limit,
        };
        let (requested, hangups) = (shutdown.requested.clone(), shutdown.hangups.clone());
        let thread = thread::Builder::new().name("tidings-signals".to_owned());
        thread.spawn(move || {
            runtime.block_on(async {
                caught.stop(&hangups).await;
                let asked = Instant::now();
                requested.cancel();
                caught.cut_off(asked, allowed).await;
            });
            logging::flush();
            process::exit(exit_code);
        })?;
        Ok(shutdown)
    }

    /// Sets how long an orderly stop may take, counted from the signal.
    pub fn allow(&self, limit: Duration) {
        self.limit.send_replace(limit);
    }

    /// Resolves when a shutdown is requested.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        self.requested.clone().cancelled_owned()
    }

    /// Resolves to the result of `work`, or to `None` if a shutdown is requested first;
    /// then `work` is dropped wherever it is waiting.
    pub async fn unless_requested<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.requested.run_until_cancelled(work).await
    }

    pub fn hangups(&self) -> Hangups {
        self.hangups.clone()
    }
}

struct Caught {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Caught {
    /// Resolves when a shutdown is requested. Until then, forwards SIGHUPs.
    async fn stop(&mut self, hangups: &Hangups) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => hangups.came(),
            }
        }
    }

    /// Resolves when stopping has exceeded its limit, or was requested again.
    async fn cut_off(&mut self, asked: Instant, mut allowed: watch::Receiver<Duration>) {
        let again = async {
            sleep(AGAIN_AFTER).await;
            // Signals that have arrived until now are echoes of the first one.
            let echo = async {
                tokio::join!(self.terminate.recv(), self.interrupt.recv());
            };
            let _ = timeout_at(Instant::now(), echo).await;
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        };
        let too_long = async {
            loop {
                let limit = *allowed.borrow_and_update();
                tokio::select! {
                    () = tokio::time::sleep_until(asked + limit) => return limit,
                    // If the sender is gone, the limit stays.
                    Ok(()) = allowed.changed() => {}
                }
            }
        };
        tokio::select! {
            () = again => warn!("received a second signal to stop, exiting immediately"),
            limit = too_long => warn!(
                "stopping took longer than {} s, exiting now",
                limit.as_secs_f64()
            ),
        }
    }
}
