//! Reads what returning clients have missed from replicas, so that the primary doesn't
//! have to, and keeps watch over which of them can be used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio::{runtime::Handle, sync::Mutex as AsyncMutex};
use tokio_postgres::types::Type;
use tracing::{debug, info, warn};

use crate::{
    delivery::{
        hub::Hub,
        page_reader::{self, OwnPage, PageSize},
    },
    domain::{history::History, log_point::LogPoint, notification::UserId, position::Position},
    postgres::{
        pool::{Parameter, Pool, QueryError, READ_LIMIT},
        queries::Sql,
        replica::{Replica, Unfit},
    },
    runtime::error_chain::ErrorChain,
};

/// Connections to each replica. A page takes less than a millisecond of one.
pub const REPLICA_CONNECTIONS: usize = 8;

/// How many pages are read at once from each replica. Some of them wait for its replay,
/// without a connection.
const PAGES_AT_ONCE: usize = 4 * REPLICA_CONNECTIONS;

/// After so many pages in a row for which its replay came too late, a replica isn't used until
/// it has caught up. A single one may have met a large transaction.
const LATE_IN_A_ROW: u32 = 8;

/// The time between two flushes of the primary's log, each of which costs it a write, and how
/// long one may take.
const FLUSH_GAP: Duration = Duration::from_millis(20);
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// How often each replica is asked whether it can be used. One that failed is not used
/// until it has answered.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The replicas of the bridge's database.
#[derive(Debug)]
pub struct Replicas {
    all: Vec<Watched>,
    /// Which one comes next.
    next: AtomicUsize,
    sql: Arc<Sql>,
    /// When the primary's log was last flushed for replicas.
    flushed: Arc<AsyncMutex<Option<Instant>>>,
}

#[derive(Debug)]
struct Watched {
    replica: Replica,
    fitness: Mutex<Fitness>,
    /// Pages in a row that it was too late for.
    late: AtomicU32,
    pages: Counter,
    failures: Counter,
}

/// Whether a replica can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fitness {
    /// It wasn't asked yet.
    Unknown,
    Fit,
    Unfit {
        name: &'static str,
        reason: String,
    },
}

/// What a replica does, for statistics.
#[derive(Debug, Serialize)]
pub struct ReplicaFigures {
    /// Where it is, without its password.
    pub replica: String,
    /// Whether pages are read from it.
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Pages that were read from it.
    pub pages: u64,
    /// How often it could not be used for a page, or failed a check.
    pub failures: u64,
}

impl Watched {
    fn new(replica: Replica) -> Self {
        Self {
            replica,
            fitness: Mutex::new(Fitness::Unknown),
            late: AtomicU32::new(0),
            pages: Counter::default(),
            failures: Counter::default(),
        }
    }

    /// Records how reading a page has ended.
    fn note_page(&self, outcome: Result<(), &Unfit>) {
        let late = match outcome {
            Ok(()) => {
                self.pages.inc();
                self.late.store(0, Ordering::Relaxed);
                return;
            }
            Err(Unfit::Behind) => self.late.fetch_add(1, Ordering::Relaxed) + 1,
            // Such as a conflict with recovery.
            Err(unfit) if unfit.is_of_one_page() => 1,
            Err(_) => LATE_IN_A_ROW,
        };
        match outcome {
            Err(unfit) if late < LATE_IN_A_ROW => {
                self.failures.inc();
                let (replica, reason) = (&self.replica, ErrorChain(unfit).to_string());
                debug!(%replica, reason, "could not read a page from {replica}: {reason}");
            }
            outcome => self.note(outcome),
        }
    }

    fn is_fit(&self) -> bool {
        *self.fitness.lock() == Fitness::Fit
    }

    /// Records an answer. Logs only what changes.
    fn note(&self, answer: Result<(), &Unfit>) {
        let fitness = match answer {
            Ok(()) => Fitness::Fit,
            Err(unfit) => Fitness::Unfit {
                name: unfit.name(),
                reason: ErrorChain(unfit).to_string(),
            },
        };
        match answer {
            Ok(()) => self.late.store(0, Ordering::Relaxed),
            Err(_) => {
                self.failures.inc();
            }
        }
        let before = std::mem::replace(&mut *self.fitness.lock(), fitness.clone());
        let replica = &self.replica;
        match (before, fitness) {
            (Fitness::Unfit { name: before, .. }, Fitness::Unfit { name, .. })
                if before == name => {}
            (_, Fitness::Unfit { reason, .. }) => {
                self.replica.renew();
                warn!(
                    %replica, reason,
                    "the replica {replica} can't be used, so returning clients are served by the \
                     primary: {reason}"
                );
            }
            (Fitness::Unknown | Fitness::Unfit { .. }, Fitness::Fit) => {
                info!(%replica, "returning clients are served by the replica {replica}");
            }
            (_, _) => {}
        }
    }
}

impl Replicas {
    pub fn new(replicas: Vec<Replica>, sql: Arc<Sql>) -> Self {
        Self {
            all: replicas.into_iter().map(Watched::new).collect(),
            next: AtomicUsize::new(0),
            sql,
            flushed: Arc::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether pages can currently be read from any of them.
    pub fn is_any_fit(&self) -> bool {
        self.all.iter().any(Watched::is_fit)
    }

    /// How many pages may be read at once.
    pub fn pages_at_once(&self) -> usize {
        PAGES_AT_ONCE * self.all.len()
    }

    /// Has the primary write its log to disk, unless that was done a moment ago. However many
    /// streams wait for it, it is done once for all of them, and by no stream itself: a stream
    /// that gives up would close the connection.
    pub fn flush(self: &Arc<Self>, primary: &Pool, runtime: &Handle) {
        let Ok(mut flushed) = Arc::clone(&self.flushed).try_lock_owned() else {
            return;
        };
        if flushed.is_some_and(|at| at.elapsed() < FLUSH_GAP) {
            return;
        }
        let (replicas, primary) = (Arc::clone(self), primary.clone());
        runtime.spawn(async move {
            let flushing = primary.query(FLUSH_LIMIT, &replicas.sql.flush_log, &[]);
            if let Err(error) = flushing.await {
                let reason = ErrorChain(&error).to_string();
                debug!(reason, "could not flush the log for replicas: {reason}");
            }
            *flushed = Some(Instant::now());
        });
    }

    /// Reads a page of the user's own rows as the primary would have returned it at this
    /// point. `None` if no replica can: then the primary has to.
    pub async fn page(
        &self,
        point: &LogPoint,
        user: &UserId,
        position: &Position,
        size: PageSize,
    ) -> Option<OwnPage> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for place in 0..self.all.len() {
            let watched = &self.all[first.wrapping_add(place) % self.all.len()];
            if !watched.is_fit() {
                continue;
            }
            let replica = &watched.replica;
            let reading =
                page_reader::user_page_on_replica(replica, &self.sql, point, user, position, size);
            let read = reading.await;
            watched.note_page(read.as_ref().map(|_| ()));
            if let Ok(page) = read {
                return Some(page);
            }
        }
        None
    }

    /// Checks the replicas forever, and records on the primary by what they prove that they
    /// follow it.
    pub async fn watch(self: Arc<Self>, hub: Arc<Hub>, primary: Pool) {
        let mut recorded = None;
        let mut earlier: Option<Arc<LogPoint>> = None;
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let history = hub.tail().history;
            if recorded != Some(history) {
                recorded = None;
                match self.record(&primary, history).await {
                    Ok(()) => recorded = Some(history),
                    Err(error) => {
                        let reason = ErrorChain(&error).to_string();
                        debug!(reason, "could not tell replicas of the primary: {reason}");
                    }
                }
                // A replica without that row, at a point before it, would only be behind.
                earlier = None;
            }
            if let Some(point) = earlier.take_if(|point| point.history == history) {
                self.check(&point).await;
            }
            if recorded.is_some() {
                // What was written since may be on its way when it is asked for.
                let wanted = hub.fresh().ask();
                let point = timeout(WATCH_INTERVAL, hub.durable().since(wanted));
                earlier = point.await.ok().flatten();
            }
        }
    }

    async fn record(&self, primary: &Pool, history: History) -> Result<(), QueryError> {
        let incarnation = history.incarnation;
        let parameters: [Parameter<'_>; 2] = [
            (&incarnation.timeline, Type::INT4),
            (&incarnation.since, Type::TIMESTAMPTZ),
        ];
        primary
            .query(READ_LIMIT, &self.sql.record_history, &parameters)
            .await?;
        Ok(())
    }

    async fn check(&self, point: &LogPoint) {
        let checks = self.all.iter().map(|watched| async {
            watched.note(watched.replica.prove(point).await.as_ref().map(|&()| ()));
        });
        futures_util::future::join_all(checks).await;
    }

    pub fn figures(&self) -> Vec<ReplicaFigures> {
        let figures = self.all.iter().map(|watched| {
            let reason = match &*watched.fitness.lock() {
                Fitness::Fit => None,
                Fitness::Unknown => Some("it was not checked yet".to_owned()),
                Fitness::Unfit { reason, .. } => Some(reason.clone()),
            };
            ReplicaFigures {
                replica: watched.replica.to_string(),
                ready: reason.is_none(),
                reason,
                pages: watched.pages.get(),
                failures: watched.failures.get(),
            }
        });
        figures.collect()
    }
}
