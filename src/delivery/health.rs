//! Whether the bridge hears the database, for readiness.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::Notify, time::Instant};
use tracing::{error, info, warn};

use crate::postgres::{schema::SchemaName, visibility::Hidden};

/// Older than this, the last look proves nothing: the listener looks at least
/// once a second while it hears the database.
const PROOF_LIMIT: Duration = Duration::from_secs(5);

/// Pages that have failed for this long are more than a hiccup: a failed one is
/// tried again within a fraction of a second at first.
const PAGES_LIMIT: Duration = Duration::from_secs(5);

/// Rows that can't be marked for this long are more than a hiccup: the promise
/// is that it shows within 15 s.
const MARKS_LIMIT: Duration = Duration::from_secs(10);

/// So long after the last failure nobody waits for a page any more: each is
/// tried again every 5 s at least.
const PAGES_FORGOTTEN: Duration = Duration::from_secs(20);

/// Above this share of the server's notification queue, INSERTs don't ring
/// (`V15__notice_crashes_and_full_queues.sql`), and the log warns.
const QUEUE_LIMIT: f64 = 0.5;

/// How the parts of the bridge get on with the database, as each of them tells.
///
/// Nothing is logged while the state is locked: a log that blocks would keep
/// probes, pages and the listener waiting.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
    heard_again: Notify,
}

#[derive(Debug, Default)]
struct State {
    last_look: Option<Instant>,
    trouble: Option<String>,
    doorbell: Option<Doorbell>,
    queue_usage: Option<f64>,
    pages: Option<Trouble>,
    marks: Option<Stuck>,
    ended_task: Option<&'static str>,
    draining: bool,
    listened: Listened,
}

/// What the listener has done since the bridge began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listened {
    /// How it learns of rows.
    pub watching: Watching,
    /// How often that has changed.
    pub changes: u64,
    /// Looks at the table.
    pub looks: u64,
    /// Bells that it woke up by; those that come together are one.
    pub rings: u64,
    /// How often it found the database again that it had lost.
    pub reconnects: u64,
}

/// How the listener learns of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Watching {
    /// It polls, and writers need not ring.
    #[default]
    Awake,
    /// It waits for the bell.
    Asleep,
}

impl Watching {
    /// As the view `tidings_bridges` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awake => "awake",
            Self::Asleep => "asleep",
        }
    }
}

/// Something that has been failing for a while.
#[derive(Debug)]
struct Trouble {
    since: Instant,
    last: Instant,
    reason: String,
}

/// Rows that were delivered and can't be marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// How many.
    pub rows: usize,
    /// Since when the first of them.
    pub since: Instant,
    /// Why.
    pub reason: String,
}

/// What rings when rows are inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// The trigger is there and fires.
    Hung,
    /// Somebody dropped it, in this schema.
    Missing(SchemaName),
    /// Somebody disabled it, in this schema.
    Disabled(SchemaName),
    /// Logical replication fills the table, with transaction ids of another
    /// cluster.
    Bypassed {
        /// The subscription.
        subscription: String,
    },
    /// There are rows of another cluster, and the bridge may not take them
    /// over.
    Restored,
    /// Rows are hidden from the bridge, or it would not notice a crash.
    Hidden(Hidden),
}

impl Doorbell {
    /// Its state, for the log.
    fn name(&self) -> &'static str {
        match self {
            Self::Hung => "hung",
            Self::Missing(_) => "missing",
            Self::Disabled(_) => "disabled",
            Self::Bypassed { .. } => "bypassed",
            Self::Restored => "restored",
            Self::Hidden(_) => "hidden",
        }
    }

    /// What is wrong with it, and what to do.
    fn trouble(&self) -> Option<String> {
        match self {
            Self::Hung => None,
            Self::Missing(schema) => Some(format!(
                "the trigger tidings_ring_doorbell is gone, so rows are found a second late: \
                 `create trigger tidings_ring_doorbell after insert on {} for each statement \
                 when (pg_sequence_last_value({}) is not null) execute function {}()`",
                schema.qualified("notifications"),
                schema.regclass("tidings_bell"),
                schema.qualified("tidings_ring_doorbell"),
            )),
            Self::Disabled(schema) => Some(format!(
                "the trigger tidings_ring_doorbell is disabled, so rows are found a second late: \
                 `alter table {} enable trigger tidings_ring_doorbell`",
                schema.qualified("notifications"),
            )),
            Self::Bypassed { subscription } => Some(format!(
                "the subscription {subscription} fills the table with rows that bear the \
                 publisher's transaction ids, which may be missed: leave the table out of the \
                 publication, or drop the subscription to switch over"
            )),
            Self::Restored => Some(
                "the table holds rows of another cluster, which are not delivered: run `tidings \
                 migrate` as the table's owner"
                    .to_owned(),
            ),
            Self::Hidden(hidden) => Some(hidden.to_string()),
        }
    }
}

/// Whether the bridge should be sent clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It hears the database.
    Ready,
    /// It does not.
    Deaf,
    /// It hears it, and can't read pages from it.
    Blind,
    /// It delivers rows, and has not been able to mark some of them for a while.
    Unmarked,
    /// A background task has ended that must not, and the process stops.
    Broken,
    /// It is stopping.
    Draining,
}

impl Status {
    /// As `/health/ready` and the view `tidings_bridges` have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Deaf => "deaf",
            Self::Blind => "blind",
            Self::Unmarked => "unmarked",
            Self::Broken => "broken",
            Self::Draining => "draining",
        }
    }
}

/// The body of `/health/ready`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether it should, or why not.
    pub status: Status,
    /// What is wrong, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long ago the listener last read the table, in milliseconds.
    pub last_look_ms: Option<u64>,
    /// How many rows that were sent can't be marked, for how long and why, if that
    /// is so. They are delivered all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marks: Option<String>,
}

impl Health {
    /// The listener has read the table.
    pub fn looked(&self) {
        let mut state = self.state();
        state.last_look = Some(Instant::now());
        state.listened.looks += 1;
        if state.trouble.take().is_some() {
            state.listened.reconnects += 1;
            drop(state);
            self.heard_again.notify_waiters();
        }
    }

    /// The bell has rung.
    pub fn rung(&self) {
        self.state().listened.rings += 1;
    }

    /// The listener learns of rows in this way from now on.
    pub fn watches(&self, watching: Watching) {
        let listened = &mut self.state().listened;
        if listened.watching != watching {
            listened.watching = watching;
            listened.changes += 1;
        }
    }

    /// What the listener has done.
    pub fn listened(&self) -> Listened {
        self.state().listened
    }

    /// Whether the listener hears the database.
    pub fn hears(&self) -> bool {
        self.state().hears()
    }

    /// Whether what rings when rows are inserted is in order, as far as is known.
    pub fn is_doorbell_hung(&self) -> bool {
        self.state().doorbell == Some(Doorbell::Hung)
    }

    /// Resolves when the listener hears the database again that it had lost.
    pub async fn heard_again(&self) {
        self.heard_again.notified().await;
    }

    /// The listener has looked after the bell.
    pub fn inspected(&self, doorbell: Doorbell) {
        let known = self.state().doorbell.replace(doorbell.clone());
        if known.as_ref() == Some(&doorbell) {
            return;
        }
        match doorbell.trouble() {
            Some(trouble) => error!(doorbell = doorbell.name(), "{trouble}"),
            None if known.is_some() => {
                info!(doorbell = doorbell.name(), "the doorbell is in order again");
            }
            None => {}
        }
    }

    /// The listener has looked how full the server's notification queue is (0 to 1).
    pub fn queue_used(&self, usage: f64) {
        let before = self.state().queue_usage.replace(usage);
        let was_full = before.is_some_and(|before| before > QUEUE_LIMIT);
        let percent = usage * 100.0;
        if usage > QUEUE_LIMIT && !was_full {
            warn!(
                usage,
                "the server's notification queue is {percent:.0} % full, so INSERTs no longer ring \
                 and rows are found up to a second late; at 100 % every commit that notifies fails, \
                 in all applications of this server: end the session that listens and doesn't read, \
                 which `tidings check` and the server's log name"
            );
        } else if usage <= QUEUE_LIMIT && was_full {
            info!(
                usage,
                "the server's notification queue is {percent:.0} % full, INSERTs ring again"
            );
        }
    }

    /// How full the server's notification queue was lately, if that is known.
    pub fn queue_usage(&self) -> Option<f64> {
        self.state().queue_usage
    }

    /// The listener has lost its connection.
    pub fn lost(&self, reason: String) {
        self.state().trouble = Some(reason);
    }

    /// A page was read.
    pub fn page_read(&self) {
        let pages = self.state().pages.take();
        if pages.is_some_and(|pages| pages.lasts()) {
            info!("pages can be read again");
        }
    }

    /// A page could not be read.
    pub fn page_failed(&self, reason: String) {
        let mut state = self.state();
        let last = Instant::now();
        let (since, lasted) = match &state.pages {
            Some(pages) if pages.last.elapsed() < PAGES_FORGOTTEN => (pages.since, pages.lasts()),
            _ => (last, false),
        };
        let pages = Trouble {
            since,
            last,
            reason,
        };
        // The listener tells of a database that is away for all.
        let news =
            (pages.lasts() && !lasted && state.trouble.is_none()).then(|| pages.reason.clone());
        state.pages = Some(pages);
        drop(state);
        if let Some(reason) = news {
            warn!(%reason, "clients wait for pages that can't be read: {reason}");
        }
    }

    /// Rows that were sent can't be marked; none if all can.
    pub fn marks(&self, stuck: Option<Stuck>) {
        self.state().marks = stuck;
    }

    /// A background task has ended while the bridge serves, which is a bug. There
    /// is no way back: the process has to be started again.
    pub fn task_ended(&self, name: &'static str) {
        self.state().ended_task.get_or_insert(name);
    }

    /// The bridge is stopping.
    pub fn drain(&self) {
        self.state().draining = true;
    }

    /// Whether the bridge should be sent clients.
    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        let age = state.last_look.map(|look| look.elapsed());
        let (status, reason) = if let Some(task) = state.ended_task {
            let reason = format!(
                "the {task} has ended unexpectedly, so the process stops and must be started \
                 again: please report this with the log"
            );
            (Status::Broken, Some(reason))
        } else if state.draining {
            (Status::Draining, None)
        } else if let Some(trouble) = &state.trouble {
            (Status::Deaf, Some(trouble.clone()))
        } else if !state.hears() {
            (
                Status::Deaf,
                Some("the database has not answered the listener lately".to_owned()),
            )
        } else if let Some(trouble) = state.doorbell.as_ref().and_then(Doorbell::trouble) {
            (Status::Deaf, Some(trouble))
        } else if let Some(pages) = state.pages.as_ref().filter(|pages| pages.lasts()) {
            let reason = format!("pages can't be read: {}", pages.reason);
            (Status::Blind, Some(reason))
        } else if let Some(stuck) = state.marks.as_ref().filter(|stuck| stuck.lasts()) {
            let reason = format!(
                "rows were sent and can't be marked, so they may be sent again: {stuck}. Find the \
                 session or the trigger with `tidings check`"
            );
            (Status::Unmarked, Some(reason))
        } else {
            (Status::Ready, None)
        };
        Readiness {
            status,
            reason,
            last_look_ms: age.map(|age| age.as_millis() as u64),
            marks: state.marks.as_ref().map(ToString::to_string),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hears(&self) -> bool {
        let is_proven = |look: Instant| look.elapsed() <= PROOF_LIMIT;
        self.trouble.is_none() && self.last_look.is_some_and(is_proven)
    }
}

impl Trouble {
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

impl Readiness {
    /// Whether all is well.
    pub fn is_ready(&self) -> bool {
        self.status == Status::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_has_ended_is_named_and_stays_so_while_the_process_stops() {
        let health = Health::default();
        health.looked();
        assert!(health.readiness().is_ready());
        health.task_ended("marker");
        health.task_ended("listener");
        health.drain();
        let readiness = health.readiness();
        assert_eq!(readiness.status, Status::Broken);
        let reason = readiness.reason.expect("a reason");
        assert!(reason.starts_with("the marker has ended"), "{reason}");
    }
}
