//! Marks rows as sent once they have settled.
//!
//! A row that was written to a connection is in flight (`in_flight.rs`) until that
//! connection has stayed open for `TIDINGS_SETTLE`, or until the client acknowledges the
//! row by returning with a later id (`acknowledged.rs`). It then waits in the queue
//! (`queue.rs`), which decides which rows are tried when.
//!
//! A lost mark only means that the row is delivered again on the user's next new
//! connection. So marks are collected and written together, and nothing waits for them.

mod acknowledged;
mod in_flight;
mod queue;
mod recipient;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::{
    acknowledged::Acknowledgement,
    recipient::{Closed, Recipient},
};
use self::{
    acknowledged::Acknowledgements,
    in_flight::{InFlight, Write},
    queue::{Lane, MarkBatch, MarkOutcome, MarkQueue, Next},
};
use crate::{
    delivery::{
        adopted_marks::AdoptedMarks,
        bridge_count::BridgeCount,
        counters::Counters,
        delivered_watermark::DeliveredWatermark,
        health::{Health, Stuck},
    },
    domain::notification::UserId,
    postgres::{
        pool::{Pool, QueryError},
        queries::Sql,
    },
    runtime::{backoff::Backoff, error_chain::ErrorChain, log_throttle::OutageLog},
};

/// The timeout of one statement. While a statement for fresh rows is unanswered, no other
/// fresh row is marked. At shutdown nothing waits longer than this for one.
const MARK_LIMIT: Duration = Duration::from_secs(3);

/// How often an unreachable database is tried before the bridge stops without having
/// written the last marks.
const LAST_TRIES: u32 = 3;

/// How much longer than `TIDINGS_SETTLE` a row may be in flight, so that rows of many
/// connections settle together and share a statement: a twentieth of that time, at most
/// [`TOGETHER`].
const TOGETHER_PART: u32 = 20;
const TOGETHER: Duration = Duration::from_millis(100);

/// How many writes, of up to some hundred rows each, settle in one step. A step takes
/// some milliseconds, in which connections wait to report what they have written.
const SETTLED_AT_ONCE: usize = 1_000;

/// The pause after a statement that looks for acknowledged rows is this many times as
/// long as the statement took: when thousands of clients return together, their pages
/// come first.
const ACKNOWLEDGE_PAUSE: u32 = 4;

/// The first and the longest wait before such a statement is retried.
const ACKNOWLEDGE_FIRST: Duration = Duration::from_millis(100);
const ACKNOWLEDGE_LONGEST: Duration = Duration::from_secs(5);

/// The longest time for which marks are collected, however many bridges there are.
const LONGEST_COLLECT: Duration = Duration::from_secs(1);

/// Rows are usually marked within this time after they have settled.
const MARKED_WITHIN: Duration = Duration::from_secs(2);

/// How many users may wait for their delivered watermark to be moved. A user who finds no
/// place tries again with the next row.
const NOTES: usize = 1_000;

/// Collects what connections report as written.
#[derive(Debug)]
pub struct Marks {
    settle: Duration,
    bridges: Arc<BridgeCount>,
    in_flight: Mutex<InFlight>,
    /// Notified when writes are in flight.
    written: Notify,
    /// Notified when the bridge has ended a stream with writes in flight.
    ended: Notify,
    acknowledged: Mutex<Acknowledgements>,
    /// Notified when there are acknowledgements.
    returned: Notify,
    /// The users whose watermarks are to be moved, with the earliest time for each.
    notes: Mutex<VecDeque<(Instant, UserId)>>,
    /// Notified when there are such users.
    noted: Notify,
    activity: Arc<Counters>,
    queue: Mutex<MarkQueue>,
    /// Notified when there are fresh rows.
    fresh: Notify,
    /// Notified when a statement has ended: there may be held rows, or the database works
    /// again.
    held: Notify,
    delivered: Counter,
    failures: Counter,
    lost: Counter,
}

/// Named in JSON as on the operator's page.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct MarkCounts {
    /// Rows written to sockets, counted once per connection.
    pub delivered: u64,
    /// Rows that have not settled, counted once per connection.
    pub in_flight: usize,
    /// Rows that have settled but aren't marked yet.
    pub unmarked: usize,
    /// Those of them that can't be marked at the moment.
    #[serde(rename = "marks_stuck")]
    pub stuck: usize,
    /// Statements that failed.
    #[serde(rename = "mark_failures")]
    pub failures: u64,
    /// Rows that are never marked, because too many were waiting.
    #[serde(rename = "lost_marks")]
    pub lost: u64,
}

impl Marks {
    pub fn new(settle: Duration, activity: Arc<Counters>) -> Self {
        Self {
            settle,
            bridges: Arc::default(),
            in_flight: Mutex::new(InFlight::new(settle)),
            written: Notify::new(),
            ended: Notify::new(),
            acknowledged: Mutex::default(),
            returned: Notify::new(),
            notes: Mutex::default(),
            noted: Notify::new(),
            activity,
            queue: Mutex::default(),
            fresh: Notify::new(),
            held: Notify::new(),
            delivered: Counter::default(),
            failures: Counter::default(),
            lost: Counter::default(),
        }
    }

    /// Collects rows for longer, the more bridges this counts.
    pub fn with_bridge_count(mut self, bridges: Arc<BridgeCount>) -> Self {
        self.bridges = bridges;
        self
    }

    /// The rows have been written to the socket of this connection. Never blocks.
    pub fn written(&self, recipient: &Arc<Recipient>, rows: impl IntoIterator<Item = i64>) {
        let at = Instant::now();
        let write = Write {
            at,
            rows: rows.into_iter().collect(),
            recipient: Arc::clone(recipient),
        };
        self.delivered.inc_by(write.rows.len() as u64);
        if self.settle.is_zero() {
            self.settled(vec![write], at);
            return;
        }
        let mut in_flight = self.in_flight.lock();
        let was_idle = in_flight.rows() == 0;
        let early = in_flight.add(write);
        drop(in_flight);
        if was_idle {
            self.written.notify_one();
        }
        self.settled(early, at);
    }

    pub fn closed(&self, recipient: &Arc<Recipient>, how: Closed) {
        recipient.close(how);
        let is_shared = Arc::strong_count(recipient) > 1;
        if how == Closed::ByBridge && is_shared {
            self.ended.notify_one();
        }
    }

    /// A client has returned with a last event id. Never blocks.
    pub fn acknowledge(&self, acknowledgement: Acknowledgement) {
        self.acknowledged.lock().add(acknowledgement);
        self.returned.notify_one();
    }

    /// Has the user's delivered watermark moved once the rows written so far are marked.
    /// Returns false if too many users wait for that.
    pub fn note_drained(&self, user: &UserId) -> bool {
        let at = Instant::now() + self.settle + MARKED_WITHIN;
        let mut notes = self.notes.lock();
        if notes.len() >= NOTES {
            return false;
        }
        notes.push_back((at, user.clone()));
        drop(notes);
        self.noted.notify_one();
        true
    }

    /// Moves settled writes to the queue.
    fn settled(&self, writes: Vec<Write>, now: Instant) {
        if writes.is_empty() {
            return;
        }
        let clock = self.activity.clock.now();
        let mut queue = self.queue.lock();
        let lost: u64 = writes
            .iter()
            .map(|write| {
                let written = clock.before(now.saturating_duration_since(write.at));
                let of = write.recipient.incarnation();
                let rows = write.rows.iter();
                rows.map(|&row| queue.add(of, row, written)).sum::<u64>()
            })
            .sum();
        drop(queue);
        self.lost.inc_by(lost);
        self.fresh.notify_one();
    }

    /// How long to wait for rows that settle a little later.
    fn together(&self) -> Duration {
        (self.settle / TOGETHER_PART).min(TOGETHER)
    }

    async fn until_settled(&self) {
        let next = self.in_flight.lock().next();
        match next {
            Some(at) => sleep_until(at + self.together()).await,
            None => self.written.notified().await,
        }
    }

    /// Moves the writes that have settled to the queue.
    fn settle(&self) {
        let now = Instant::now();
        loop {
            let mut in_flight = self.in_flight.lock();
            let is_due = in_flight.next().is_some_and(|at| at <= now);
            let settled = in_flight.take_settled(now, SETTLED_AT_ONCE);
            drop(in_flight);
            if !is_due {
                return;
            }
            self.settled(settled, now);
        }
    }

    /// Moves the writes to streams that the bridge has ended to the queue.
    fn settle_ended(&self) {
        let ended = self.in_flight.lock().take_ended();
        self.settled(ended, Instant::now());
    }

    /// Moves all writes to the queue: the bridge stops and ends all connections.
    fn settle_all(&self) {
        let all = self.in_flight.lock().take_all();
        self.settled(all, Instant::now());
    }

    pub fn counts(&self) -> MarkCounts {
        let (unmarked, stuck) = {
            let queue = self.queue.lock();
            (queue.len(), queue.stuck_rows())
        };
        MarkCounts {
            in_flight: self.in_flight.lock().rows(),
            delivered: self.delivered.get(),
            unmarked,
            stuck,
            failures: self.failures.get(),
            lost: self.lost.get(),
        }
    }

    /// Resolves when the lane may have something to do.
    async fn until(&self, lane: Lane) {
        let news = match lane {
            Lane::Fresh => &self.fresh,
            Lane::Held => &self.held,
        };
        let next = self.queue.lock().next(lane, Instant::now());
        match next {
            Next::Now => {}
            Next::Idle => news.notified().await,
            Next::At(at) => tokio::select! {
                () = sleep_until(at) => {}
                () = news.notified() => {}
            },
        }
    }
}

/// The task that sets `sent_at`.
#[derive(Debug)]
pub struct Marker {
    pub marks: Arc<Marks>,
    pub pool: Pool,
    pub sql: Arc<Sql>,
    pub health: Arc<Health>,
    pub drained: Arc<DeliveredWatermark>,
    /// Rows of applications' tables are marked afterwards.
    pub adopted: Arc<AdoptedMarks>,
}

impl Marker {
    /// Writes marks until `stop`, then those that are left and can be written at once.
    /// May be dropped at any time: rows that were not marked by then are delivered again.
    pub async fn run(self, stop: CancellationToken) {
        let outage = Mutex::default();
        tokio::join!(
            self.settle(&stop),
            self.acknowledge(&stop),
            self.note_drained(&stop),
            self.mark_fresh(&stop, &outage),
            self.mark_held(&stop, &outage)
        );
        self.marks.settle_all();
        self.last_flush().await;
    }

    async fn settle(&self, stop: &CancellationToken) {
        let marks = &self.marks;
        let working = async {
            loop {
                tokio::select! {
                    () = marks.until_settled() => marks.settle(),
                    () = marks.ended.notified() => {
                        // Each call examines all writes in flight.
                        sleep(marks.together()).await;
                        marks.settle_ended();
                    }
                }
            }
        };
        stop.run_until_cancelled(working).await;
    }

    /// Looks for unmarked rows that returning clients have received.
    async fn acknowledge(&self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(ACKNOWLEDGE_FIRST, ACKNOWLEDGE_LONGEST);
        let working = async {
            loop {
                let taken = self.marks.acknowledged.lock().take();
                if taken.is_empty() {
                    self.marks.returned.notified().await;
                    continue;
                }
                let began = Instant::now();
                let pause = match self.find_acknowledged(&taken).await {
                    Ok(()) => {
                        backoff.reset();
                        began.elapsed() * ACKNOWLEDGE_PAUSE
                    }
                    Err(error) => {
                        let error = ErrorChain(&error);
                        debug!(%error, "could not look up acknowledged rows, retrying: {error}");
                        self.marks.acknowledged.lock().put_back(taken);
                        backoff.next_delay()
                    }
                };
                sleep(pause).await;
            }
        };
        stop.run_until_cancelled(working).await;
    }

    async fn find_acknowledged(&self, taken: &[Acknowledgement]) -> Result<(), QueryError> {
        // A role that may not read watermarks would have to read all of the users' rows.
        let Some(query) = self.drained.acknowledged() else {
            return Ok(());
        };
        let found = acknowledged::find(&self.pool, query, taken).await?;
        let now = self.marks.activity.clock.now();
        let mut queue = self.marks.queue.lock();
        let rows = found.rows.into_iter();
        let lost: u64 = rows.map(|(of, row)| queue.add(of, row, now)).sum();
        drop(queue);
        self.marks.lost.inc_by(lost);
        self.marks.fresh.notify_one();
        self.marks.acknowledged.lock().put_back(found.rest);
        Ok(())
    }

    /// Moves the delivered watermarks of users with long streams.
    async fn note_drained(&self, stop: &CancellationToken) {
        let working = async {
            loop {
                let next = self.marks.notes.lock().pop_front();
                let Some((at, user)) = next else {
                    self.marks.noted.notified().await;
                    continue;
                };
                sleep_until(at).await;
                self.drained.note_live(&user).await;
            }
        };
        stop.run_until_cancelled(working).await;
    }

    async fn mark_fresh(&self, stop: &CancellationToken, outage: &Mutex<OutageLog>) {
        let lane = Lane::Fresh;
        while stop
            .run_until_cancelled(self.marks.until(lane))
            .await
            .is_some()
        {
            let collect = self.marks.queue.lock().collect() * self.marks.bridges.collect_factor();
            let collect = collect.min(LONGEST_COLLECT);
            if stop.run_until_cancelled(sleep(collect)).await.is_none() {
                return;
            }
            while let Some(batch) = self.take(lane) {
                self.mark(batch, outage).await;
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    async fn mark_held(&self, stop: &CancellationToken, outage: &Mutex<OutageLog>) {
        let lane = Lane::Held;
        while stop
            .run_until_cancelled(self.marks.until(lane))
            .await
            .is_some()
        {
            if let Some(batch) = self.take(lane) {
                self.mark(batch, outage).await;
            }
        }
    }

    /// Writes the last marks in small steps, none of which waits for a row that is locked
    /// or fails.
    async fn last_flush(&self) {
        let outage = Mutex::default();
        let mut tries = 0;
        self.marks.queue.lock().hurry(Instant::now());
        for lane in [Lane::Fresh, Lane::Held] {
            while tries < LAST_TRIES {
                if let Some(batch) = self.take(lane) {
                    match self.mark(batch, &outage).await {
                        Answered::Yes => {}
                        Answered::Refused => tries += 1,
                        // The next statement would not be answered either.
                        Answered::Never => tries = LAST_TRIES,
                    }
                    continue;
                }
                let next = self.marks.queue.lock().next(lane, Instant::now());
                match next {
                    Next::Now => {}
                    // The backoff after a failure of the database.
                    Next::At(at) if tries > 0 && lane == Lane::Fresh => sleep_until(at).await,
                    Next::At(_) | Next::Idle => break,
                }
            }
        }
        let left = self.marks.counts().unmarked;
        if left > 0 {
            warn!(
                rows = left,
                "stopping with {left} sent rows that could not be marked: they may be sent again"
            );
        }
    }

    fn take(&self, lane: Lane) -> Option<MarkBatch> {
        self.marks.queue.lock().take(lane, Instant::now())
    }

    /// Runs one statement and records its outcome.
    async fn mark(&self, batch: MarkBatch, outage: &Mutex<OutageLog>) -> Answered {
        let outcome = match self.try_mark(&batch).await {
            Ok(locked) => {
                let marked = batch.rows.iter().filter(|id| !locked.contains(*id));
                self.adopted.sent(marked.copied());
                MarkOutcome::Marked { locked }
            }
            Err(error) => {
                self.marks.failures.inc();
                let reason = ErrorChain(&error).to_string();
                match error {
                    error if error.is_of_rows() => MarkOutcome::RowFailed(reason),
                    QueryError::TimedOut(_) => MarkOutcome::TimedOut(reason),
                    _ => MarkOutcome::DatabaseFailed(reason),
                }
            }
        };
        let answered = match &outcome {
            MarkOutcome::Marked { .. } | MarkOutcome::RowFailed(_) => Answered::Yes,
            MarkOutcome::DatabaseFailed(_) => Answered::Refused,
            MarkOutcome::TimedOut(_) => Answered::Never,
        };
        let failure = match &outcome {
            MarkOutcome::Marked { .. } => None,
            MarkOutcome::RowFailed(reason)
            | MarkOutcome::TimedOut(reason)
            | MarkOutcome::DatabaseFailed(reason) => Some(reason.clone()),
        };
        let (lost, stuck) = {
            let mut queue = self.marks.queue.lock();
            let lost = queue.conclude(batch, outcome, Instant::now());
            (lost, queue.stuck())
        };
        self.marks.lost.inc_by(lost);
        self.marks.held.notify_one();
        self.log_outcome(outage, failure, stuck.as_ref());
        self.health.marks(stuck);
        answered
    }

    fn log_outcome(
        &self,
        outage: &Mutex<OutageLog>,
        failure: Option<String>,
        stuck: Option<&Stuck>,
    ) {
        let mut outage = outage.lock();
        let (is_news, is_over) = match (&failure, stuck) {
            (Some(reason), Some(_)) => (outage.is_news(reason, Instant::now().into_std()), false),
            (_, None) => (false, outage.is_over()),
            (None, Some(_)) => (false, false),
        };
        drop(outage);
        if is_over {
            info!("marking works again, all sent rows are marked");
        }
        let (Some(error), Some(Stuck { rows, .. })) = (failure, stuck) else {
            return;
        };
        if is_news {
            warn!(
                error,
                rows, "could not mark {rows} rows as sent, retrying: {error}"
            );
        } else {
            debug!(error, rows, "could not mark {rows} rows as sent: {error}");
        }
    }

    /// Runs the statement. Returns the rows that other sessions have locked.
    async fn try_mark(&self, batch: &MarkBatch) -> Result<BTreeSet<i64>, QueryError> {
        let MarkBatch {
            incarnation: of,
            rows,
            written,
            ..
        } = batch;
        // Rows that can't be marked must not occupy the connection of those that can.
        let pool = match batch.lane() {
            Lane::Fresh => self.pool.for_marks(),
            Lane::Held => self.pool.clone(),
        };
        let answer = pool
            .query(
                MARK_LIMIT,
                &self.sql.mark_sent,
                &[
                    (rows, Type::INT8_ARRAY),
                    (&of.timeline, Type::INT4),
                    (&of.since, Type::TIMESTAMPTZ),
                    (written, Type::TIMESTAMPTZ_ARRAY),
                ],
            )
            .await?;
        let mut locked = BTreeSet::new();
        for row in &answer {
            match (row.try_get("id")?, row.try_get::<_, Option<i64>>("marked")?) {
                (Some(id), _) => {
                    locked.insert(id);
                }
                (None, Some(marked)) => self.marks.activity.marked(marked.unsigned_abs()),
                // The server has crashed since, or the session leads to another server:
                // the rows remain unmarked.
                (None, None) => self.pool.renew(),
            }
        }
        Ok(locked)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    Yes,
    /// The database is unreachable, or can't mark anything.
    Refused,
    Never,
}
