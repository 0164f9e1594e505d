//! The statistics of the bridge, read on request.
//!
//! The delivery path counts in atomics, which are summed up only here.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    auth::rejections::{RejectReason, Rejections},
    delivery::{
        adopted_marks::{AdoptedMarkCounts, AdoptedMarks},
        catch_up::Reads,
        counters::{Counters, Delays, TopicCounts},
        cursors::{CursorCounts, Cursors},
        feed::{FeedFigures, FeedStats},
        health::{Health, ListenerState, Readiness},
        hub::{Audience, Hub},
        marker::{MarkCounts, Marks},
        recent_rows::RecentSize,
        replicas::{ReplicaFigures, Replicas},
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
    pub adopted: Arc<AdoptedMarks>,
    pub activity: Arc<Counters>,
    pub cursors: Arc<Cursors>,
    pub health: Arc<Health>,
    pub pool: Pool,
    pub reads: Reads,
    pub replicas: Arc<Replicas>,
    /// Sharing with other bridges, if it is configured.
    pub feed: Option<Arc<FeedStats>>,
    pub pruned: Arc<Pruned>,
    pub rejections: Arc<Rejections>,
    /// Maximum number of open streams.
    pub connections_limit: u32,
}

/// All statistics at one moment, as the operator's page shows them. Counters begin at the
/// start of the bridge. Whoever counts several things defines their names and values.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Whether the bridge should receive clients, and why not.
    #[serde(flatten)]
    pub readiness: Readiness,
    #[serde(flatten)]
    pub audience: Audience,
    /// Maximum number of open streams.
    pub connections_limit: u32,
    /// How long delivered rows took from `created_at` to a socket.
    pub delays: Delays,
    #[serde(flatten)]
    pub marks: MarkCounts,
    /// Rows that were marked as sent.
    pub marked: u64,
    #[serde(flatten)]
    pub adopted: AdoptedMarkCounts,
    #[serde(flatten)]
    pub topic_counts: TopicCounts,
    #[serde(flatten)]
    pub cursors: CursorCounts,
    /// Streams that wait for a page of what they missed.
    pub pages_wanted: i64,
    /// Pages for which no query was needed.
    pub recent_pages: u64,
    #[serde(flatten)]
    pub recent: RecentSize,
    /// The replicas, if there are any.
    pub replicas: Vec<ReplicaFigures>,
    /// Sharing with other bridges, if it is configured.
    pub feed: Option<FeedFigures>,
    /// Rows that were read in pages.
    pub page_rows: u64,
    /// Failed attempts to read a page.
    pub page_failures: u64,
    /// Users and tickets for which no page can be read at the moment, while others' can.
    pub failing_subscribers: i64,
    /// Old and expired rows that this bridge has removed.
    pub pruned: u64,
    /// Old and expired rows that this bridge can't remove at the moment.
    pub prune_failures: u64,
    /// How many seconds the database's clock is ahead; `None` until that is known.
    pub clock_offset: Option<f64>,
    pub listener: ListenerState,
    pub pool: Usage,
    /// Rejected requests and sockets, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Resource usage of the process, if the system reports it.
    pub process: Option<Process>,
}

impl Stats {
    pub fn figures(&self) -> Figures {
        let ahead = self.activity.clock.ahead();
        let refused =
            RejectReason::ALL.map(|reason| (reason.name(), self.rejections.counter.of(reason)));
        Figures {
            readiness: self.health.readiness(),
            audience: self.hub.audience(),
            connections_limit: self.connections_limit,
            delays: self.activity.delays(),
            marks: self.marks.counts(),
            marked: self.activity.totals().sent,
            adopted: self.adopted.counts(),
            pages_wanted: self.reads.wanted.get(),
            recent_pages: self.reads.recent.get(),
            recent: self.hub.recent_size(),
            replicas: self.replicas.figures(),
            feed: self.feed.as_ref().map(|feed| feed.figures()),
            page_rows: self.reads.rows.get(),
            page_failures: self.reads.failures.get(),
            failing_subscribers: self.reads.failing.get(),
            topic_counts: self.activity.topics(),
            cursors: self.cursors.counts(),
            pruned: self.pruned.rows(),
            prune_failures: self.pruned.failed(),
            clock_offset: ahead.map(|micros| micros as f64 / 1e6),
            listener: self.health.listener(),
            pool: self.pool.usage(),
            refused: refused.into(),
            process: Process::now(),
        }
    }
}
