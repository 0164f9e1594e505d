//! Stops a bridge in order, within a time limit.

use std::{sync::Arc, time::Duration};

use actix_web::web;
use futures_util::future::join_all;
use tokio::time::{Instant, interval, timeout_at};
use tracing::{info, warn};

use crate::{
    config::BridgeOptions,
    delivery::{health::Health, hub::Hub, mailbox::Ending},
    http::{detached_stream::DetachedStreams, draining::Draining, servers},
    monitoring::logging,
    postgres::pool::Pool,
    runtime::tasks::{Stopped, Task},
};

/// Limit for the whole shutdown, beyond the drain time: after it the process ends,
/// whatever hangs. Process managers are configured to wait this long.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// The part of [`SHUTDOWN_LIMIT`] that is reserved for what follows once all tasks have
/// ended or were aborted: the admin server, the last log lines, and the end of the
/// runtime.
const EXIT_RESERVE: Duration = Duration::from_millis(1_500);

/// How long the listener may take to stop: one poll, and releasing its lock.
pub(super) const LISTENER_LIMIT: Duration = Duration::from_secs(2);

/// How long the HTTP server may take to close its port and its connections.
pub(super) const SERVER_LIMIT: Duration =
    servers::CLOSING_LIMIT.saturating_add(Duration::from_millis(400));

/// How long writing the last marks may take: all of [`SHUTDOWN_LIMIT`] if the other parts
/// of the shutdown take no time, because rows without marks are sent again.
pub(super) const MARKER_LIMIT: Duration = SHUTDOWN_LIMIT;

/// How often to check whether all streams have ended.
const STREAMS_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long the last report may take; the reporter itself gives up earlier.
pub(super) const REPORTER_LIMIT: Duration = Duration::from_millis(1_500);

/// How long the pruner may take to stop: it is dropped wherever it is waiting.
pub(super) const PRUNER_LIMIT: Duration = Duration::from_secs(1);

/// How long the admin server may take to stop: it drops its connections.
pub(super) const ADMIN_LIMIT: Duration = Duration::from_millis(500);

/// How long a bridge with these settings may take to stop.
pub fn shutdown_limit(options: &BridgeOptions) -> Duration {
    options.drain + SHUTDOWN_LIMIT
}

/// The tasks of a running bridge, and what it takes to stop them.
pub(super) struct Running {
    pub(super) gate: web::Data<Draining>,
    pub(super) health: Arc<Health>,
    pub(super) hub: Arc<Hub>,
    pub(super) detached: Arc<DetachedStreams>,
    pub(super) pool: Pool,
    pub(super) drain: Duration,
    pub(super) marker: Task,
    pub(super) cursors: Task,
    pub(super) pruner: Option<Task>,
    pub(super) reporter: Task,
    pub(super) listener: Task,
    pub(super) server: Task,
    pub(super) admin: Task,
    /// Tasks that have nothing to finish when they are stopped.
    pub(super) background: Vec<Task>,
}

impl Running {
    pub(super) async fn stop(self) {
        // First: from now on requests for streams are answered with a deferral.
        self.gate.close();
        self.health.drain();
        let connections = self.hub.connections();
        info!(connections, "stopping: ending {connections} streams");
        let begin = Instant::now();
        let mut stopping = Stopping {
            deadline: begin + self.drain + SHUTDOWN_LIMIT - EXIT_RESERVE,
            cut_off: Vec::new(),
        };
        if let Some(pruner) = &self.pruner {
            pruner.request_stop();
        }
        self.listener.request_stop();
        self.hub.end_all(Ending::Draining);
        // The listener may be waiting for a database that can't be reached.
        stopping.stop(self.listener).await;
        let streams_deadline = Instant::now() + self.drain + servers::STOP_GRACE;
        let ended = timeout_at(streams_deadline, async {
            self.gate.passed().await;
            until_empty(&self.hub).await;
        });
        let server = match ended.await {
            // No stream can start any more, so the port keeps answering until the end.
            Ok(()) => {
                let _ = timeout_at(streams_deadline, self.detached.ended()).await;
                Some(self.server)
            }
            // Streams that are cut off can't write rows after the last marks.
            Err(_) => {
                stopping.stop(self.server).await;
                None
            }
        };
        // The last report follows the last marks, so that it includes them.
        let marks_deadline = stopping.deadline - REPORTER_LIMIT;
        self.cursors.request_stop();
        stopping.stop_before(marks_deadline, self.marker).await;
        stopping.stop_before(marks_deadline, self.cursors).await;
        stopping
            .stop_all([self.reporter].into_iter().chain(server))
            .await;
        self.pool.close();
        let rest = self.background.into_iter().chain(self.pruner);
        stopping.deadline = Instant::now() + ADMIN_LIMIT;
        stopping.stop_all(rest.chain([self.admin])).await;
        logging::report_suppressed();
        stopping.warn_of_aborted();
        let took = begin.elapsed();
        let deferred = self.gate.deferred();
        info!(
            took_ms = took.as_millis() as u64,
            deferred,
            // The name of earlier releases.
            turned_away = deferred,
            "stopped; {deferred} requests for streams were told to retry"
        );
    }
}

async fn until_empty(hub: &Hub) {
    let mut ticks = interval(STREAMS_POLL_INTERVAL);
    while hub.connections() > 0 {
        ticks.tick().await;
    }
}

/// The deadline of a shutdown, and the tasks that were aborted in it.
#[derive(Debug)]
struct Stopping {
    deadline: Instant,
    cut_off: Vec<&'static str>,
}

impl Stopping {
    async fn stop(&mut self, task: Task) {
        self.stop_before(self.deadline, task).await;
    }

    async fn stop_before(&mut self, deadline: Instant, task: Task) {
        let name = task.name();
        match task.stop(deadline).await {
            Stopped::InTime => {}
            Stopped::CutOff => self.cut_off.push(name),
        }
    }

    /// Stops all of them concurrently.
    async fn stop_all(&mut self, tasks: impl Iterator<Item = Task>) {
        let deadline = self.deadline;
        let stopped = join_all(tasks.map(async |task| (task.name(), task.stop(deadline).await)));
        let cut_off = stopped.await.into_iter();
        let cut_off = cut_off.filter(|(_, stopped)| *stopped == Stopped::CutOff);
        self.cut_off.extend(cut_off.map(|(name, _)| name));
    }

    fn warn_of_aborted(&self) {
        if !self.cut_off.is_empty() {
            let cut_off = self.cut_off.join(", ");
            warn!(
                cut_off,
                "stopping took too long, so these tasks were aborted: {cut_off}. Rows that were \
                 sent but not marked are sent again to clients that connect without a last event \
                 id"
            );
        }
    }
}
