//! The queue of rows to mark, and when each is tried. A state machine without I/O.
//!
//! A row starts *fresh*, and is marked together with other fresh rows. If a statement
//! fails because of a row, all of its rows become *suspects*, which are tried in ever
//! smaller statements until the failing ones are isolated. Failing rows, and rows that
//! another session has locked, are retried with a backoff of their own. So a row that
//! can't be marked doesn't delay others: fresh rows and *held* rows (suspected, locked or
//! failing) have separate lanes, each with one statement at a time.
//!
//! A failure of the database as a whole is an *outage*: all rows are kept, and retried
//! after one backoff for the whole lane.

mod allowance;
mod outages;
mod shelf;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use self::{
    allowance::{Allowance, FAILURES_RESERVED},
    outages::Outages,
    shelf::Shelf,
};
use crate::{
    delivery::health::Stuck,
    domain::{clock::Moment, history::Incarnation},
    runtime::backoff::jittered,
};

const ROWS_AT_ONCE: usize = 1_000;

/// How many rows may wait for their marks in total, while the database is away: some 50
/// MB. Beyond that, the oldest stay unmarked and may be delivered again.
const KEPT: usize = 1_000_000;

/// How many of them may be held; each takes some 150 bytes. Beyond that, the oldest stay
/// unmarked.
const HELD: usize = 200_000;

/// If a statement times out, its rows become suspects only while there are fewer suspects
/// than this: while a database is frozen, every statement times out.
const SUSPECTED_OF_DELAY: usize = 10_000;

/// How long fresh rows are collected: short enough that people see `sent` at once, long
/// enough that a busy bridge marks hundreds of rows per statement.
const COLLECT: Duration = Duration::from_millis(20);

/// While every statement for fresh rows fails because of a row, the collection time is
/// doubled up to this many times.
const COLLECT_DOUBLINGS: u32 = 4;

/// The first wait after a failure of the database, and before a locked or failing row is
/// retried.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The reason given for stuck rows if no statement has failed.
const LOCKED: &str = "other sessions have locked them, or a trigger suppresses the update";

/// A row, including the server's incarnation: after a failover or a crash, another row
/// that was sent to no one may have the same id.
type Row = (Incarnation, i64);

#[derive(Debug, Default)]
pub(super) struct MarkQueue {
    /// Fresh rows, with the time at which each was written to a connection.
    fresh: BTreeMap<Row, Moment>,
    /// The number of fresh rows in the current statement.
    in_flight: usize,
    /// Statements for fresh rows that have failed because of a row since a row was last
    /// marked.
    fruitless: u32,
    fresh_outage: Outages,
    /// Held rows, including those in the current statement.
    held: BTreeMap<Row, HeldRow>,
    suspected: Shelf,
    locked: Shelf,
    failing: Shelf,
    /// How many of `held` have been held since when.
    since: BTreeMap<Instant, usize>,
    /// The last error that was caused by a row.
    error: Option<String>,
    failures: Allowance,
    held_outage: Outages,
}

/// A row that is no longer fresh.
#[derive(Clone, Copy, Debug)]
struct HeldRow {
    /// When it was written to a connection.
    written: Moment,
    since: Instant,
    due: Instant,
    /// How often it was found to be locked or failing.
    tries: u32,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It was in a statement that failed.
    Suspected,
    Locked,
    /// It failed in a statement of its own.
    Failing,
}

/// Which rows a statement is for. Each lane runs one statement at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Rows that were never tried.
    Fresh,
    /// All others.
    Held,
}

/// Where a statement's rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Fresh,
    Held(Why),
}

/// The rows of one statement.
#[derive(Debug)]
pub(super) struct MarkBatch {
    origin: Origin,
    pub(super) incarnation: Incarnation,
    pub(super) rows: Vec<i64>,
    /// When each row was written to a connection.
    pub(super) written: Vec<Moment>,
}

impl MarkBatch {
    pub(super) fn lane(&self) -> Lane {
        match self.origin {
            Origin::Fresh => Lane::Fresh,
            Origin::Held(_) => Lane::Held,
        }
    }
}

#[derive(Debug)]
pub(super) enum MarkOutcome {
    /// The rows are done, except those that are locked.
    Marked { locked: BTreeSet<i64> },
    /// It failed because of one of its rows.
    RowFailed(String),
    /// It was not answered, because of a row or of the database.
    TimedOut(String),
    /// The database can't mark any row.
    DatabaseFailed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Now,
    At(Instant),
    /// When rows arrive.
    Idle,
}

impl MarkQueue {
    /// Adds a row that was written to a connection at this time. Returns how many rows
    /// stay unmarked because too many wait.
    pub(super) fn add(&mut self, incarnation: Incarnation, id: i64, written: Moment) -> u64 {
        let row = (incarnation, id);
        // A row that is delivered again while it is held keeps its backoff.
        if !self.held.contains_key(&row) {
            self.fresh.entry(row).or_insert(written);
        }
        self.shed()
    }

    /// How many rows wait for their marks or are being marked.
    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.in_flight + self.held.len()
    }

    /// How many of them can't be marked at the moment.
    pub(super) fn stuck_rows(&self) -> usize {
        match (&self.fresh_outage.now, &self.held_outage.now) {
            (None, None) => self.held.len(),
            _ => self.len(),
        }
    }

    /// For how long to collect fresh rows.
    pub(super) fn collect(&self) -> Duration {
        COLLECT * (1 << self.fruitless.min(COLLECT_DOUBLINGS))
    }

    pub(super) fn next(&self, lane: Lane, now: Instant) -> Next {
        let (at, outages) = match lane {
            Lane::Fresh => ((!self.fresh.is_empty()).then_some(now), &self.fresh_outage),
            Lane::Held => {
                let due = [Why::Suspected, Why::Locked, Why::Failing].map(|why| self.due(why, now));
                (due.into_iter().flatten().min(), &self.held_outage)
            }
        };
        let Some(at) = at else {
            return Next::Idle;
        };
        match at.max(outages.now.as_ref().map_or(at, |outage| outage.until)) {
            at if at > now => Next::At(at),
            _ => Next::Now,
        }
    }

    /// When the first row of a shelf may be tried.
    fn due(&self, why: Why, now: Instant) -> Option<Instant> {
        let &(due, _) = self.shelf(why).due.first()?;
        let reserved = match why {
            Why::Failing => FAILURES_RESERVED,
            Why::Suspected | Why::Locked => 0.0,
        };
        Some(due.max(self.failures.ready(reserved, now)))
    }

    /// Takes the rows of the lane's next statement, if there is one to run now.
    pub(super) fn take(&mut self, lane: Lane, now: Instant) -> Option<MarkBatch> {
        if self.next(lane, now) != Next::Now {
            return None;
        }
        let (origin, rows) = match lane {
            Lane::Fresh => {
                let rows = self.take_fresh();
                self.in_flight += rows.len();
                (Origin::Fresh, rows)
            }
            Lane::Held => {
                let is_due = |why: &Why| self.due(*why, now).is_some_and(|due| due <= now);
                let mut order = [Why::Suspected, Why::Locked, Why::Failing].into_iter();
                let why = order.find(is_due)?;
                let rows = self.shelf_mut(why).take(now).into_iter();
                let written = |row| self.held.get(&row).map(|held| (row, held.written));
                (Origin::Held(why), rows.filter_map(written).collect())
            }
        };
        let incarnation = rows.first()?.0.0;
        let (rows, written) = rows.into_iter().map(|((_, id), at)| (id, at)).unzip();
        Some(MarkBatch {
            origin,
            incarnation,
            rows,
            written,
        })
    }

    /// Takes the oldest rows of one incarnation.
    fn take_fresh(&mut self) -> Vec<(Row, Moment)> {
        let mut rows: Vec<(Row, Moment)> = Vec::new();
        while rows.len() < ROWS_AT_ONCE
            && let Some(first) = self.fresh.first_entry()
            && rows.first().is_none_or(|((of, _), _)| *of == first.key().0)
        {
            rows.push(first.remove_entry());
        }
        rows
    }

    /// Records the outcome of a statement. Returns how many rows stay unmarked because
    /// too many are held.
    pub(super) fn conclude(&mut self, batch: MarkBatch, outcome: MarkOutcome, now: Instant) -> u64 {
        let (origin, count) = (batch.origin, batch.rows.len());
        let rows = batch.rows.iter().zip(&batch.written);
        let rows = rows.map(|(&id, &written)| ((batch.incarnation, id), written));
        if origin == Origin::Fresh {
            self.in_flight -= count;
        } else {
            self.failures.count(&outcome, now);
        }
        match &outcome {
            MarkOutcome::Marked { locked } => {
                for (row, written) in rows {
                    if locked.contains(&row.1) {
                        self.hold(row, written, Why::Locked, now);
                    } else {
                        self.remove(row);
                    }
                }
                self.succeed(origin, count - locked.len());
            }
            MarkOutcome::TimedOut(reason) if origin == Origin::Fresh => {
                if self.suspected.count < SUSPECTED_OF_DELAY {
                    rows.for_each(|(row, written)| self.hold(row, written, Why::Suspected, now));
                } else {
                    self.fresh.extend(rows);
                }
                self.fresh_outage.begin(reason, now);
            }
            MarkOutcome::RowFailed(reason) | MarkOutcome::TimedOut(reason) => {
                if let (MarkOutcome::TimedOut(_), Some(_)) = (&outcome, &self.fresh_outage.now) {
                    // Most likely these rows aren't the cause.
                    self.held_outage.begin(reason, now);
                }
                self.error = Some(reason.clone());
                match origin {
                    _ if count == 1 => {
                        rows.for_each(|(row, written)| self.hold(row, written, Why::Failing, now));
                    }
                    Origin::Fresh => {
                        rows.for_each(|(row, written)| {
                            self.hold(row, written, Why::Suspected, now)
                        });
                        self.suspected.size = self.suspected.size.min(count / 2);
                    }
                    Origin::Held(why) => {
                        self.put_back(rows.map(|(row, _)| row));
                        self.shelf_mut(why).size = count / 2;
                    }
                }
                self.fruitless += u32::from(origin == Origin::Fresh);
            }
            MarkOutcome::DatabaseFailed(reason) if origin == Origin::Fresh => {
                self.fresh.extend(rows);
                self.fresh_outage.begin(reason, now);
            }
            MarkOutcome::DatabaseFailed(reason) => {
                self.put_back(rows.map(|(row, _)| row));
                self.held_outage.begin(reason, now);
            }
        }
        self.shed()
    }

    /// The rows that can't be marked, if there are any.
    pub(super) fn stuck(&self) -> Option<Stuck> {
        let held_since = self.since.keys().next().copied();
        let outages = [&self.fresh_outage, &self.held_outage];
        if let Some(outage) = outages.iter().find_map(|outages| outages.now.as_ref()) {
            return Some(Stuck {
                rows: self.len(),
                since: held_since.map_or(outage.since, |since| since.min(outage.since)),
                reason: outage.reason.clone(),
            });
        }
        let (locked, rows) = (self.locked.count, self.held.len());
        let error = self.error.as_deref().unwrap_or_default();
        let reason = match (locked, rows - locked) {
            (_, 0) => LOCKED.to_owned(),
            (0, _) => error.to_owned(),
            (_, failing) => format!("other sessions have locked {locked}; {failing} fail: {error}"),
        };
        Some(Stuck {
            rows,
            since: held_since?,
            reason,
        })
    }

    /// Makes locked rows, and all rows after an outage, due at once, because the bridge
    /// stops. Failing rows keep their backoff.
    pub(super) fn hurry(&mut self, now: Instant) {
        for outages in [&mut self.fresh_outage, &mut self.held_outage] {
            outages.hurry(now);
        }
        for (_, row) in std::mem::take(&mut self.locked.due) {
            if let Some(held) = self.held.get_mut(&row) {
                held.due = now;
                self.locked.due.insert((now, row));
            }
        }
    }

    fn succeed(&mut self, origin: Origin, marked: usize) {
        // The database works, and there may be no fresh row that would show it.
        self.fresh_outage.end();
        if let Origin::Held(why) = origin {
            self.held_outage.end();
            let shelf = self.shelf_mut(why);
            shelf.size = (shelf.size * 2).min(ROWS_AT_ONCE);
        }
        if marked > 0 {
            self.fruitless = 0;
        }
        self.failures.earn(marked);
        if self.held.is_empty() {
            self.held_outage.end();
            self.error = None;
        }
    }

    /// Moves a row to the held ones.
    fn hold(&mut self, row: Row, written: Moment, why: Why, now: Instant) {
        let before = self.remove(row);
        let (since, tries) = before.map_or((now, 0), |held| (held.since, held.tries));
        let (due, tries) = match why {
            Why::Suspected => (now, tries),
            Why::Locked | Why::Failing => (now + delay(tries), tries.saturating_add(1)),
        };
        let held = HeldRow {
            written,
            since,
            due,
            tries,
            why,
        };
        self.held.insert(row, held);
        *self.since.entry(since).or_default() += 1;
        let shelf = self.shelf_mut(why);
        shelf.count += 1;
        shelf.due.insert((due, row));
    }

    /// Makes rows due again, as if they had not been tried.
    fn put_back(&mut self, rows: impl Iterator<Item = Row>) {
        for row in rows {
            // It may have been dropped while a statement tried it.
            if let Some(&HeldRow { due, why, .. }) = self.held.get(&row) {
                self.shelf_mut(why).due.insert((due, row));
            }
        }
    }

    /// Removes a row from the held ones, if it is one of them.
    fn remove(&mut self, row: Row) -> Option<HeldRow> {
        let held = self.held.remove(&row)?;
        let shelf = self.shelf_mut(held.why);
        shelf.count -= 1;
        shelf.due.remove(&(held.due, row));
        if let Some(count) = self.since.get_mut(&held.since) {
            *count -= 1;
            if *count == 0 {
                self.since.remove(&held.since);
            }
        }
        Some(held)
    }

    /// Drops the oldest rows beyond the limits. Returns how many.
    fn shed(&mut self) -> u64 {
        let mut lost = 0;
        while self.held.len() > HELD
            && let Some((&row, _)) = self.held.first_key_value()
        {
            self.remove(row);
            lost += 1;
        }
        while self.len() > KEPT && self.fresh.pop_first().is_some() {
            lost += 1;
        }
        lost
    }

    fn shelf(&self, why: Why) -> &Shelf {
        match why {
            Why::Suspected => &self.suspected,
            Why::Locked => &self.locked,
            Why::Failing => &self.failing,
        }
    }

    fn shelf_mut(&mut self, why: Why) -> &mut Shelf {
        match why {
            Why::Suspected => &mut self.suspected,
            Why::Locked => &mut self.locked,
            Why::Failing => &mut self.failing,
        }
    }
}

/// The wait before a row is retried that was tried this many times. Like
/// [`Backoff`](crate::runtime::backoff::Backoff), which would have to be stored for each
/// row.
fn delay(tries: u32) -> Duration {
    let doubled = 1_u32.checked_shl(tries).unwrap_or(u32::MAX);
    jittered(RETRY_FIRST.saturating_mul(doubled).min(RETRY_LONGEST))
}

#[cfg(test)]
mod tests;
