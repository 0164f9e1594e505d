//! The statistics of the bridge, read on request.
//!
//! The delivery path counts in atomics, which are summed up only here.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    auth::rejections::{RejectReason, Rejections},
    delivery::{
        catch_up::Reads,
        counters::{Counters, Delays},
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

/// Where the statistics are counted.
#[derive(Debug)]
pub struct Stats {
    pub hub: Arc<Hub>,
    pub marks: Arc<Marks>,
    pub activity: Arc<Counters>,
    pub health: Arc<Health>,
    pub pool: Pool,
    pub reads: Reads,
    pub pruned: Arc<Pruned>,
    pub rejections: Arc<Rejections>,
    /// Maximum number of open streams.
    pub connections_limit: u32,
}

/// All statistics at one moment. Counters begin at the start of the bridge.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Whether the bridge should receive clients, and why not.
    #[serde(flatten)]
    pub readiness: Readiness,
    /// Open streams.
    pub connections: usize,
    /// Maximum number of open streams.
    pub connections_limit: u32,
    /// Streams that were opened.
    pub opened: u64,
    /// Users with an open stream.
    pub users: usize,
    /// Rows that were written to sockets.
    pub delivered: u64,
    /// How long they took from `created_at` to a socket.
    pub delays: Delays,
    pub waiting_rows: usize,
    /// Times that a mailbox was full.
    pub overflows: u64,
    /// Rows that were marked as sent.
    pub marked: u64,
    /// Rows that have not settled, counted once per connection that they were written to.
    pub in_flight: usize,
    /// Rows that have settled and are not marked yet.
    pub unmarked: usize,
    /// Those of them that can't be marked at the moment.
    pub marks_stuck: usize,
    /// Failed attempts to write marks.
    pub mark_failures: u64,
    /// Rows that will not be marked, and may be sent again.
    pub lost_marks: u64,
    /// Streams that wait for a page of what they missed.
    pub pages_wanted: i64,
    /// Rows that were read in pages.
    pub page_rows: u64,
    /// Failed attempts to read a page.
    pub page_failures: u64,
    /// Old and expired rows that this bridge has removed.
    pub pruned: u64,
    /// Old and expired rows that this bridge can't remove at the moment.
    pub prune_failures: u64,
    /// How many seconds the database's clock is ahead; `None` until that is known.
    pub clock_offset: Option<f64>,
    pub listener: ListenerStats,
    pub pool: Usage,
    /// Rejected requests and sockets, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Resource usage of the process, if the system reports it.
    pub process: Option<Process>,
}

/// Statistics of the listener.
#[derive(Debug, Serialize)]
pub struct ListenerStats {
    /// Whether the listener is connected to the database and has polled recently.
    pub connected: bool,
    /// The former name of `connected`, for pages that an earlier release served.
    pub hears: bool,
    pub watching: Watching,
    /// Whether the trigger that sends NOTIFY exists and fires.
    pub doorbell_in_order: bool,
    /// How full the server's notification queue is, from 0 to 1, if that is known.
    pub queue_usage: Option<f64>,
    /// Polls of the table.
    pub polls: u64,
    /// The former name of `polls`.
    pub looks: u64,
    /// Doorbells that woke it up.
    pub rings: u64,
    /// Changes between awake and asleep.
    pub changes: u64,
    /// Reconnections after the database was lost.
    pub reconnects: u64,
}

impl Stats {
    pub fn figures(&self) -> Figures {
        let (audience, marks) = (self.hub.audience(), self.marks.counts());
        let listened = self.health.listened();
        let refused =
            RejectReason::ALL.map(|reason| (reason.name(), self.rejections.counter.of(reason)));
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
            listener: ListenerStats {
                connected: self.health.hears(),
                hears: self.health.hears(),
                watching: listened.watching,
                doorbell_in_order: self.health.is_doorbell_in_order(),
                queue_usage: self.health.queue_usage(),
                polls: listened.looks,
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
