//! Supervises background tasks. Each task has a name, is stopped through a token, and has
//! a time limit for stopping. If a task ends without having been asked to, this is
//! reported (readiness turns red), and the process exits with an error so that its
//! service manager restarts it. A bridge that kept running without its marker, for
//! instance, would look healthy and send every row twice.

use std::{io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    task_local,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{error, warn};

use crate::runtime::error_chain::ErrorChain;

/// How long a task with nothing to finish may take to end: the time until it is scheduled
/// again on a busy machine.
const ENDLESS_LIMIT: Duration = Duration::from_secs(1);

task_local! {
    static NAME: &'static str;
}

/// The name of the calling background task, for the log.
pub fn current() -> Option<&'static str> {
    NAME.try_with(|name| *name).ok()
}

pub struct Tasks {
    /// Called with the name of each task that ends too early.
    report: Arc<dyn Fn(&'static str) + Send + Sync>,
    /// The first task that ended too early.
    failed: watch::Sender<Option<Failed>>,
}

/// A task that ended without having been asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub name: &'static str,
    pub how: Failure,
}

/// How such a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It returned, which is a bug.
    Returned,
    /// It panicked, which is a bug.
    Panicked,
    /// It returned this error.
    Error(String),
}

/// How a task ended that was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stopped {
    /// It finished its work.
    InTime,
    /// It was aborted at its limit.
    CutOff,
}

/// The result of a task's future.
#[derive(Debug)]
pub enum TaskOutcome {
    Finished,
    Failed(io::Error),
}

impl From<()> for TaskOutcome {
    fn from((): ()) -> Self {
        Self::Finished
    }
}

impl From<io::Result<()>> for TaskOutcome {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Finished,
            Err(error) => Self::Failed(error),
        }
    }
}

/// A running task. Dropping it aborts it.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    stop: CancellationToken,
    limit: Duration,
    running: AbortOnDropHandle<()>,
}

impl Tasks {
    /// `report` is called with the name of each task that ends without having been asked
    /// to.
    pub fn new(report: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self {
            report: Arc::new(report),
            failed: watch::Sender::default(),
        }
    }

    /// Starts a task on the current runtime. The task must not end before its token is
    /// cancelled, and must end within `limit` afterwards.
    pub fn start<F>(
        &self,
        name: &'static str,
        limit: Duration,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Task
    where
        F: Future<Output: Into<TaskOutcome>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let running = AssertUnwindSafe(run(stop.clone())).catch_unwind();
        let (report, failed) = (Arc::clone(&self.report), self.failed.clone());
        let (is_asked, supervised) = (stop.clone(), NAME.scope(name, running));
        let supervised = async move {
            let how = match supervised.await.map(Into::into) {
                Ok(TaskOutcome::Finished) => Failure::Returned,
                Ok(TaskOutcome::Failed(error)) => Failure::Error(ErrorChain(&error).to_string()),
                Err(_) => Failure::Panicked,
            };
            let is_asked = is_asked.is_cancelled();
            match &how {
                // The panic hook has logged it, with the location in the code.
                Failure::Panicked => {}
                Failure::Error(error) if is_asked => {
                    warn!(%error, "the {name} failed while stopping: {error}");
                }
                Failure::Error(error) => error!(%error, "the {name} failed: {error}"),
                Failure::Returned if is_asked => {}
                Failure::Returned => error!("the {name} ended without being asked to stop"),
            }
            if !is_asked {
                report(name);
                failed.send_if_modified(|first| {
                    let is_first = first.is_none();
                    first.get_or_insert(Failed { name, how });
                    is_first
                });
            }
        };
        Task {
            name,
            stop,
            limit,
            running: AbortOnDropHandle::new(tokio::spawn(supervised)),
        }
    }

    /// Starts a task that has nothing to finish: when it is asked to stop, it is dropped
    /// at whatever it is waiting for.
    pub fn start_endless(
        &self,
        name: &'static str,
        running: impl Future<Output = ()> + Send + 'static,
    ) -> Task {
        self.start(name, ENDLESS_LIMIT, async move |stop| {
            let _ = stop.run_until_cancelled(running).await;
        })
    }

    /// Resolves when any task has ended without having been asked to.
    pub async fn failed(&self) -> Failed {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(failed) = failed.borrow_and_update().clone() {
                return failed;
            }
            // `self` owns the sender, so this can't fail.
            let _ = failed.changed().await;
        }
    }
}

impl Task {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Asks the task to stop, without waiting for it.
    pub fn request_stop(&self) {
        self.stop.cancel();
    }

    /// Asks the task to stop and waits until it has, up to its own limit or `deadline`,
    /// whichever comes first. Then it is aborted. A task that never yields is left
    /// running: nothing in the process can end it.
    pub async fn stop(self, deadline: Instant) -> Stopped {
        self.stop.cancel();
        let deadline = deadline.min(Instant::now() + self.limit);
        if self.running.is_finished() {
            return Stopped::InTime;
        }
        match timeout_at(deadline, self.running).await {
            Ok(_) => Stopped::InTime,
            Err(_) => Stopped::CutOff,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::OnceLock};

    use tokio::time::sleep;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// The name that was reported first.
    type Reported = Arc<OnceLock<&'static str>>;

    fn tasks() -> (Tasks, Reported) {
        let reported = Reported::default();
        let report = Arc::clone(&reported);
        let set = move |name| _ = report.set(name);
        (Tasks::new(set), reported)
    }

    fn far() -> Instant {
        Instant::now() + 1_000 * LIMIT
    }

    /// The first failure, which must be reported immediately.
    async fn failure(tasks: &Tasks, reported: &Reported) -> Failed {
        let begin = Instant::now();
        let failed = timeout_at(begin + LIMIT, tasks.failed()).await;
        let failed = failed.expect("it is told");
        assert!(begin.elapsed() < LIMIT, "{:?}", begin.elapsed());
        assert_eq!(reported.get(), Some(&failed.name));
        failed
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_turns_readiness_red_and_is_named() {
        let (tasks, reported) = tasks();
        let _fine = tasks.start("fine", LIMIT, async |stop| stop.cancelled_owned().await);
        let _panics = tasks.start("one that panics", LIMIT, async |_| {
            sleep(LIMIT / 2).await;
            assert_ne!(current(), Some("one that panics"), "of a test");
        });
        assert_eq!(reported.get(), None);
        let (name, how) = ("one that panics", Failure::Panicked);
        assert_eq!(failure(&tasks, &reported).await, Failed { name, how });
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_returns_early_has_failed_too_and_the_first_failure_counts() {
        let (tasks, reported) = tasks();
        let _first = tasks.start("first", LIMIT, async |_| ());
        let (name, how) = ("first", Failure::Returned);
        assert_eq!(failure(&tasks, &reported).await, Failed { name, how });
        let error = || io::Error::other("of a test");
        let _second = tasks.start("second", LIMIT, async move |_| Err(error()));
        sleep(LIMIT).await;
        assert_eq!(tasks.failed().await.name, "first");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_tells_why() {
        let (tasks, reported) = tasks();
        let _task = tasks.start("server", LIMIT, async |_| {
            Err::<(), _>(io::Error::other("of a test"))
        });
        let how = Failure::Error("of a test".to_owned());
        assert_eq!(failure(&tasks, &reported).await.how, how);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_finishes_its_work_when_it_is_asked_to_stop() {
        let (tasks, reported) = tasks();
        let (done, finished) = tokio::sync::oneshot::channel();
        let task = tasks.start("marker", LIMIT, async move |stop| {
            stop.cancelled().await;
            sleep(LIMIT / 2).await;
            let _ = done.send(());
        });
        assert_eq!(task.stop(far()).await, Stopped::InTime);
        assert!(finished.await.is_ok());
        assert_eq!(reported.get(), None, "it was asked to");
        let endless = tasks.start_endless("endless", pending());
        assert_eq!(endless.stop(far()).await, Stopped::InTime);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_its_stop_is_aborted_at_its_limit_or_at_the_deadline() {
        struct Dropped(Option<tokio::sync::oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _ = self.0.take().map(|dropped| dropped.send(()));
            }
        }
        let (tasks, _) = tasks();
        for (until_deadline, expected) in [(2 * LIMIT, LIMIT), (LIMIT / 2, LIMIT / 2)] {
            let (drops, dropped) = tokio::sync::oneshot::channel();
            let held = Dropped(Some(drops));
            let task = tasks.start("deaf", LIMIT, async move |_| {
                let _held = held;
                pending::<()>().await;
            });
            let begin = Instant::now();
            assert_eq!(task.stop(begin + until_deadline).await, Stopped::CutOff);
            assert_eq!(
                begin.elapsed().as_secs_f64().round(),
                expected.as_secs_f64().round()
            );
            assert!(dropped.await.is_ok(), "it was aborted");
        }
    }
}
