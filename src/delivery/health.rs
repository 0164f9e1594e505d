//! The bridge's health as its parts report it, for the readiness check.

mod doorbell;
mod readiness;

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::Notify, time::Instant};
use tracing::{error, info, warn};

pub use self::{
    doorbell::Doorbell,
    readiness::{Readiness, ReadinessStatus},
};

/// If the last poll is older than this, the bridge isn't ready: while connected, the
/// listener polls at least once a second.
const PROOF_LIMIT: Duration = Duration::from_secs(5);

/// Readiness turns red when page reads have failed for this long. Shorter failures don't
/// count: a failed read is first retried within a fraction of a second.
const PAGES_LIMIT: Duration = Duration::from_secs(5);

/// Readiness turns red when rows could not be marked for this long. It must show within
/// 15 s.
const MARKS_LIMIT: Duration = Duration::from_secs(10);

/// If no page read has failed for this long, no stream is still waiting for one: each
/// read is retried at least every 5 s.
const PAGES_FORGOTTEN: Duration = Duration::from_secs(20);

/// Above this share of the server's notification queue, INSERTs don't send NOTIFY
/// (`V15__notice_crashes_and_full_queues.sql`), and the bridge logs a warning.
const QUEUE_LIMIT: f64 = 0.5;

/// Collects what the listener, the page reads and the marker report about the database.
///
/// Nothing is logged while the state is locked: if writing to the log blocked, health
/// checks, page reads and the listener would wait for it.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<HealthState>,
    reconnected: Notify,
}

#[derive(Debug, Default)]
struct HealthState {
    last_poll: Option<Instant>,
    trouble: Option<String>,
    doorbell: Option<Doorbell>,
    queue_usage: Option<f64>,
    pages: Option<ReadOutage>,
    marks: Option<Stuck>,
    ended_task: Option<&'static str>,
    draining: bool,
    listened: Listened,
}

/// The state of the listener.
#[derive(Debug, Serialize)]
pub struct ListenerState {
    /// Whether it is connected and polled the table within the last 5 s.
    pub connected: bool,
    /// Whether the last inspection found the trigger that sends NOTIFY in order.
    pub doorbell_in_order: bool,
    /// How full the server's notification queue is, from 0 to 1, if that is known.
    pub queue_usage: Option<f64>,
    #[serde(flatten)]
    pub listened: Listened,
}

/// What the listener has done since the bridge started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Listened {
    pub watching: Watching,
    /// How often `watching` has changed.
    pub changes: u64,
    /// How often it polled the table.
    pub polls: u64,
    /// How often the doorbell woke it. Notifications that arrive together count once.
    pub rings: u64,
    /// How often it reconnected to the database.
    pub reconnects: u64,
}

/// How the listener finds new rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Watching {
    /// It polls, and writers need not send NOTIFY.
    #[default]
    Awake,
    /// It waits for the doorbell.
    Asleep,
    /// Another bridge polls, and sends it what it reads.
    Following,
    /// It polls, and sends others what it reads.
    Feeding,
}

impl Watching {
    /// The name in the view `tidings_bridges`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awake => "awake",
            Self::Asleep => "asleep",
            Self::Following => "following",
            Self::Feeding => "feeding",
        }
    }
}

/// Failing page reads.
#[derive(Debug)]
struct ReadOutage {
    since: Instant,
    last: Instant,
    reason: String,
}

/// Rows that were delivered and can't be marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    pub rows: usize,
    /// When marking the first of them failed.
    pub since: Instant,
    pub reason: String,
}

impl Health {
    /// The listener polled the table successfully.
    pub fn polled(&self) {
        let mut state = self.state.lock();
        state.last_poll = Some(Instant::now());
        state.listened.polls += 1;
        if state.trouble.take().is_some() {
            state.listened.reconnects += 1;
            drop(state);
            self.reconnected.notify_waiters();
        }
    }

    /// The doorbell woke the listener.
    pub fn rung(&self) {
        self.state.lock().listened.rings += 1;
    }

    /// The listener switched to polling, or to waiting for the doorbell.
    pub fn watches(&self, watching: Watching) {
        let listened = &mut self.state.lock().listened;
        if listened.watching != watching {
            listened.watching = watching;
            listened.changes += 1;
        }
    }

    pub fn listener(&self) -> ListenerState {
        let state = self.state.lock();
        ListenerState {
            connected: state.is_connected(),
            doorbell_in_order: state.doorbell == Some(Doorbell::InOrder),
            queue_usage: state.queue_usage,
            listened: state.listened,
        }
    }

    /// Resolves when the listener has reconnected to the database.
    pub async fn reconnected(&self) {
        self.reconnected.notified().await;
    }

    /// The listener has inspected the doorbell. Logs changes.
    pub fn inspected(&self, doorbell: Doorbell) {
        let known = self.state.lock().doorbell.replace(doorbell.clone());
        if known.as_ref() == Some(&doorbell) {
            return;
        }
        let (state, former) = (doorbell.name(), doorbell.former_name());
        match doorbell.trouble() {
            Some(trouble) => error!(state, doorbell = former, "{trouble}"),
            None if known.is_some() => {
                info!(state, doorbell = former, "the doorbell works again");
            }
            None => {}
        }
    }

    /// The listener has read how full the server's notification queue is (0 to 1). Logs
    /// when it crosses the limit.
    pub fn queue_used(&self, usage: f64) {
        let before = self.state.lock().queue_usage.replace(usage);
        let was_full = before.is_some_and(|before| before > QUEUE_LIMIT);
        let percent = usage * 100.0;
        if usage > QUEUE_LIMIT && !was_full {
            warn!(
                usage,
                "the server's notification queue is {percent:.0} % full, so INSERTs no longer send \
                 NOTIFY and rows are found up to a second late; at 100 % every commit that sends \
                 NOTIFY fails, in all applications on this server: end the session that listens \
                 but doesn't read (`tidings check` and the server's log name it)"
            );
        } else if usage <= QUEUE_LIMIT && was_full {
            info!(
                usage,
                "the server's notification queue is {percent:.0} % full, INSERTs send NOTIFY again"
            );
        }
    }

    pub fn lost(&self, reason: String) {
        self.state.lock().trouble = Some(reason);
    }

    pub fn page_read(&self) {
        let pages = self.state.lock().pages.take();
        if pages.is_some_and(|pages| pages.lasts()) {
            info!("pages can be read again");
        }
    }

    pub fn page_failed(&self, reason: String) {
        let mut state = self.state.lock();
        let last = Instant::now();
        let (since, lasted) = match &state.pages {
            Some(pages) if pages.last.elapsed() < PAGES_FORGOTTEN => (pages.since, pages.lasts()),
            _ => (last, false),
        };
        let pages = ReadOutage {
            since,
            last,
            reason,
        };
        // While the database is away, the listener logs that for all.
        let news =
            (pages.lasts() && !lasted && state.trouble.is_none()).then(|| pages.reason.clone());
        state.pages = Some(pages);
        drop(state);
        if let Some(reason) = news {
            warn!(%reason, "clients are waiting for pages that can't be read: {reason}");
        }
    }

    /// Some rows that were sent can't be marked; `None` if all can.
    pub fn marks(&self, stuck: Option<Stuck>) {
        self.state.lock().marks = stuck;
    }

    /// A background task has ended while the bridge is running, which is a bug. Readiness
    /// stays red until the process is restarted.
    pub fn task_ended(&self, name: &'static str) {
        self.state.lock().ended_task.get_or_insert(name);
    }

    pub fn drain(&self) {
        self.state.lock().draining = true;
    }

    pub fn readiness(&self) -> Readiness {
        let state = self.state.lock();
        let age = state.last_poll.map(|poll| poll.elapsed());
        let (status, reason) = if let Some(task) = state.ended_task {
            let reason = format!(
                "the {task} has ended unexpectedly, so the process is stopping and must be \
                 restarted: please report this with the log"
            );
            (ReadinessStatus::Broken, Some(reason))
        } else if state.draining {
            (ReadinessStatus::Draining, None)
        } else if let Some(trouble) = &state.trouble {
            (ReadinessStatus::ListenerFailing, Some(trouble.clone()))
        } else if !state.is_connected() {
            (
                ReadinessStatus::ListenerFailing,
                Some("the database has not answered the listener recently".to_owned()),
            )
        } else if let Some(trouble) = state.doorbell.as_ref().and_then(Doorbell::trouble) {
            (ReadinessStatus::ListenerFailing, Some(trouble))
        } else if let Some(pages) = state.pages.as_ref().filter(|pages| pages.lasts()) {
            let reason = format!("pages can't be read: {}", pages.reason);
            (ReadinessStatus::ReadsFailing, Some(reason))
        } else if let Some(stuck) = state.marks.as_ref().filter(|stuck| stuck.lasts()) {
            let reason = format!(
                "sent rows can't be marked, so they may be sent again: {stuck}. Run `tidings \
                 check` to find the session or the trigger"
            );
            (ReadinessStatus::Unmarked, Some(reason))
        } else {
            (ReadinessStatus::Ready, None)
        };
        Readiness {
            status,
            reason,
            last_poll_ms: age.map(|age| age.as_millis() as u64),
            marks: state.marks.as_ref().map(ToString::to_string),
        }
    }
}

impl HealthState {
    fn is_connected(&self) -> bool {
        let is_proven = |poll: Instant| poll.elapsed() <= PROOF_LIMIT;
        self.trouble.is_none() && self.last_poll.is_some_and(is_proven)
    }
}

impl ReadOutage {
    fn lasts(&self) -> bool {
        self.last - self.since >= PAGES_LIMIT && self.last.elapsed() < PAGES_FORGOTTEN
    }
}

impl Stuck {
    fn lasts(&self) -> bool {
        self.since.elapsed() >= MARKS_LIMIT
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rows,
            since,
            reason,
        } = self;
        let (rows, seconds) = (*rows, since.elapsed().as_secs());
        let noun = if rows == 1 { "row" } else { "rows" };
        write!(f, "{rows} {noun} for {seconds} s: {reason}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_has_ended_is_named_and_stays_so_while_the_process_stops() {
        let health = Health::default();
        health.polled();
        assert!(health.readiness().is_ready());
        health.task_ended("marker");
        health.task_ended("listener");
        health.drain();
        let readiness = health.readiness();
        assert_eq!(readiness.status, ReadinessStatus::Broken);
        let reason = readiness.reason.expect("a reason");
        assert!(reason.starts_with("the marker has ended"), "{reason}");
    }

    #[test]
    fn the_fields_of_earlier_releases_keep_their_names_and_values() {
        let health = Health::default();
        health.polled();
        health.lost("gone".to_owned());
        let body = serde_json::to_value(health.readiness()).expect("JSON");
        assert_eq!(body["readiness"], "listener-failing");
        assert_eq!(body["status"], "deaf");
        assert_eq!(body["last_poll_ms"], body["last_look_ms"]);
        assert!(body["last_poll_ms"].is_u64() && body.get("marks").is_none());
        health.drain();
        let body = serde_json::to_value(health.readiness()).expect("JSON");
        assert_eq!(
            (&body["readiness"], &body["status"]),
            (&"draining".into(), &"draining".into())
        );
    }
}
