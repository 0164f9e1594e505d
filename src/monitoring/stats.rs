//! How the bridge does: all that it counts, read when somebody asks.
//!
//! What a row passes counts in atomics, and nobody adds them up before that.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    auth::rejections::{Reason, Refusals},
    delivery::{
        catch_up::Reads,
        counters::{Activity, Delays},
        health::{Health, Readiness, Watching},
        hub::Hub,
        marker::Marks,
    },
    monitoring::process::Process,
    postgres::{
        pool::{Pool, Usage},
        pruner::Pruned,
    },
};

/// Where it is counted.
#[derive(Debug)]
pub struct Vitals {
    /// Connections, and what waits for them.
    pub hub: Arc<Hub>,
    /// Rows that were sent.
    pub marks: Arc<Marks>,
    /// Rows on their way, and how long it took.
    pub activity: Arc<Activity>,
    /// The listener.
    pub health: Arc<Health>,
    /// Connections to the database.
    pub pool: Pool,
    /// Pages.
    pub reads: Reads,
    /// Rows that were removed.
    pub pruned: Arc<Pruned>,
    /// Who was turned away.
    pub refusals: Arc<Refusals>,
    /// Streams that may be open.
    pub connections_limit: u32,
}

/// All of it, at one moment. What only grows is counted since the bridge began.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Whether it should be sent clients, and why not.
    #[serde(flatten)]
    pub readiness: Readiness,
    /// Streams that are open.
    pub connections: usize,
    /// Streams that may be open.
    pub connections_limit: u32,
    /// Streams that were opened.
    pub opened: u64,
    /// Users with a stream.
    pub users: usize,
    /// Rows that were written to sockets.
    pub delivered: u64,
    /// How long they took from the table.
    pub delays: Delays,
    /// Rows in mailboxes.
    pub waiting_rows: usize,
    /// Mailboxes that were full.
    pub overflows: u64,
    /// Rows that have their mark.
    pub marked: u64,
    /// Rows that have not settled, each for every connection that it was written to.
    pub in_flight: usize,
    /// Rows that have settled and whose marks are still to be written.
    pub unmarked: usize,
    /// Those of them that can't be marked at the moment.
    pub marks_stuck: usize,
    /// Tries to write marks that failed.
    pub mark_failures: u64,
    /// Rows that go without a mark.
    pub lost_marks: u64,
    /// Streams that wait for a page of what they missed.
    pub pages_wanted: i64,
    /// Rows in pages.
    pub page_rows: u64,
    /// Tries to read a page that failed.
    pub page_failures: u64,
    /// Rows that this bridge has removed because they had had their time.
    pub pruned: u64,
    /// Rows that have had their time and that this bridge could not remove.
    pub prune_failures: u64,
    /// How many seconds the database's clock is ahead, once that is known.
    pub clock_offset: Option<f64>,
    /// The listener.
    pub listener: Listener,
    /// Connections to the database.
    pub pool: Usage,
    /// Those who were turned away, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// What the process takes, where the system tells it.
    pub process: Option<Process>,
}

/// How the listener does.
#[derive(Debug, Serialize)]
pub struct Listener {
    /// Whether it hears the database.
    pub hears: bool,
    /// How it learns of rows.
    pub watching: Watching,
    /// Whether what rings when rows are inserted is in order.
    pub doorbell_in_order: bool,
    /// How full the server's notification queue is, if that is known.
    pub queue_usage: Option<f64>,
    /// Looks at the table.
    pub looks: u64,
    /// Bells that it woke up by.
    pub rings: u64,
    /// How often it changed between polling and waiting for the bell.
    pub changes: u64,
    /// How often it found the database again that it had lost.
    pub reconnects: u64,
}

impl Vitals {
    /// How it does now.
    pub fn figures(&self) -> Figures {
        let (audience, marks) = (self.hub.audience(), self.marks.counts());
        let listened = self.health.listened();
        let refused = Reason::ALL.map(|reason| (reason.name(), self.refusals.of(reason)));
        Figures {
            readiness: self.health.readiness(),
            connections: self.hub.connections(),
            connections_limit: self.connections_limit,
            opened: audience.opened,
            users: audience.users,
            delivered: marks.delivered,
            delays: self.activity.delays(),
            waiting_rows: audience.waiting_rows,
            overflows: audience.overflows,
            marked: self.activity.totals().sent,
            in_flight: marks.in_flight,
            unmarked: marks.unmarked,
            marks_stuck: marks.stuck,
            mark_failures: marks.failures,
            lost_marks: marks.lost,
            pages_wanted: self.reads.wanted.get(),
            page_rows: self.reads.rows.get(),
            page_failures: self.reads.failures.get(),
            pruned: self.pruned.rows(),
            prune_failures: self.pruned.failed(),
            clock_offset: self
                .activity
                .clock
                .ahead()
                .map(|micros| micros as f64 / 1e6),
            listener: Listener {
                hears: self.health.hears(),
                watching: listened.watching,
                doorbell_in_order: self.health.is_doorbell_hung(),
                queue_usage: self.health.queue_usage(),
                looks: listened.looks,
                rings: listened.rings,
                changes: listened.changes,
                reconnects: listened.reconnects,
            },
            pool: self.pool.usage(),
            refused: refused.into(),
            process: Process::now(),
        }
    }
}
