//! The metrics, in the OpenMetrics text format or in that of Prometheus.
//! `docs/operations/metrics.md` explains what each of them is for.

mod exposition;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder,
        NoLabelSet, text,
    },
    metrics::{MetricType, TypedMetric, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};

use crate::{
    delivery::{counters::Delays, feed::role::FeedRole, health::Watching, stream_end::Ended},
    monitoring::{logging, process, stats::Stats},
};

pub use self::exposition::Exposition;

/// All metrics of the bridge and its process.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    pub fn new(stats: Arc<Stats>, ended: &Ended) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let tidings = registry.sub_registry_with_prefix("tidings");
        tidings.register(
            "build",
            "The version of Tidings",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        tidings.register(
            "refused",
            "Rejected requests and sockets, by reason",
            stats.rejections.counter.family(),
        );
        tidings.register(
            "connections_ended",
            "Streams ended, by reason",
            ended.family(),
        );
        tidings.register(
            "page_seconds",
            "How long streams waited for pages of rows that they had missed",
            stats.reads.seconds.clone(),
        );
        tidings.register_collector(Box::new(BridgeCollector(stats)));
        Self(registry)
    }

    /// The current values in this format.
    pub fn text(&self, exposition: Exposition) -> String {
        let mut text = String::new();
        let written = text::encode(&mut text, &self.0);
        debug_assert!(written.is_ok(), "a string takes everything");
        exposition.write(text)
    }
}

/// The metrics that are read from the bridge at each scrape.
#[derive(Debug)]
struct BridgeCollector(Arc<Stats>);

impl Collector for BridgeCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = self.0.figures();
        let (audience, marks, pool) = (&now.audience, &now.marks, &now.pool);
        let (listener, listened) = (&now.listener, &now.listener.listened);
        let age = now.readiness.last_poll_ms;
        let age = age.map_or(f64::INFINITY, |age| age as f64 / 1_000.0);
        let mut sheet = MetricWriter(encoder);
        sheet.gauge(
            "ready",
            "Whether the bridge is ready for clients",
            u64::from(now.readiness.is_ready()),
        )?;
        sheet.gauge("connections", "Open streams", audience.connections)?;
        sheet.gauge(
            "connections_limit",
            "Maximum number of open streams",
            now.connections_limit,
        )?;
        sheet.counter("connections_opened", "Streams opened", audience.opened)?;
        sheet.gauge(
            "users",
            "Users, and tickets without a user, with at least one open stream",
            audience.users,
        )?;
        sheet.counter("delivered_rows", "Rows written to sockets", marks.delivered)?;
        sheet.gauge(
            "topics",
            "Topics with at least one open stream, without the one that everyone has",
            audience.topics,
        )?;
        sheet.counter(
            "topic_rows",
            "Rows for topics that were read",
            now.topic_counts.topic_rows,
        )?;
        sheet.counter(
            "delivered_topic_rows",
            "Rows for topics written to sockets, once for each stream",
            now.topic_counts.delivered_topic_rows,
        )?;
        sheet.counter(
            "membership_changes",
            "Changes of memberships that were read",
            now.topic_counts.membership_changes,
        )?;
        sheet.counter(
            "cursors_written",
            "How often it was stored where a user continues in the topics",
            now.cursors.cursors_written,
        )?;
        sheet.counter(
            "cursor_failures",
            "Failed attempts to store where users continue in their topics",
            now.cursors.cursor_failures,
        )?;
        sheet.counter(
            "lost_cursors",
            "Users of whom it was not stored where they continue, and who may receive rows again",
            now.cursors.lost_cursors,
        )?;
        sheet.histogram(
            "delay_seconds",
            "Time from created_at to the sockets of streams that were already open",
            &now.delays,
        )?;
        if let Some(offset) = now.clock_offset {
            sheet.gauge(
                "clock_offset_seconds",
                "How far the database's clock is ahead of this machine's",
                offset,
            )?;
        }
        sheet.gauge(
            "mailbox_rows",
            "Rows waiting in memory for live streams",
            audience.waiting_rows,
        )?;
        sheet.counter(
            "mailbox_overflows",
            "Streams that went back to reading pages because they were too slow",
            audience.overflows,
        )?;
        sheet.counter("marked_rows", "Rows marked as sent", now.marked)?;
        sheet.gauge(
            "rows_in_flight",
            "Rows written to a connection less than TIDINGS_SETTLE ago, counted once per \
             connection",
            marks.in_flight,
        )?;
        sheet.gauge(
            "unmarked_rows",
            "Rows that have settled but are not marked yet",
            marks.unmarked,
        )?;
        sheet.gauge(
            "marks_stuck",
            "Rows that were sent but currently can't be marked: locked, rejected, or the database \
             can't mark any",
            marks.stuck,
        )?;
        sheet.counter(
            "mark_failures",
            "Failed attempts to write marks",
            marks.failures,
        )?;
        sheet.counter(
            "lost_marks",
            "Rows whose marks were dropped, and which may be sent again",
            marks.lost,
        )?;
        sheet.gauge(
            "adopted_marks_waiting",
            "Rows of adopted tables that were sent and are to be marked there",
            now.adopted.waiting,
        )?;
        sheet.counter(
            "adopted_mark_failures",
            "Attempts to mark rows of adopted tables that failed, at least for some rows",
            now.adopted.failures,
        )?;
        sheet.gauge(
            "adopted_tables_failing",
            "Adopted tables in which rows currently can't be marked",
            now.adopted.failing,
        )?;
        sheet.counter("pruned_rows", "Old rows removed", now.pruned)?;
        sheet.gauge(
            "prune_failed_rows",
            "Old rows that currently can't be removed",
            now.prune_failures,
        )?;
        sheet.gauge(
            "pages_wanted",
            "Streams waiting for a page of rows that they missed",
            now.pages_wanted,
        )?;
        sheet.counter(
            "recent_pages",
            "Pages of rows that streams had missed and the bridge still had, without a query",
            now.recent_pages,
        )?;
        sheet.gauge(
            "recent_rows",
            "Rows of the last minute that the bridge has",
            now.recent.rows,
        )?;
        sheet.gauge(
            "recent_bytes",
            "Memory that these rows take",
            now.recent.bytes,
        )?;
        // Without replicas, there are no such metrics.
        if !now.replicas.is_empty() {
            let replicas = || now.replicas.iter().map(|it| (it.replica.as_str(), it));
            let ready = replicas().map(|(which, it)| (which, ConstGauge::new(u64::from(it.ready))));
            sheet.family(
                "replica_ready",
                "Whether pages are read from this replica",
                "replica",
                ready,
            )?;
            let pages = replicas().map(|(which, it)| (which, ConstCounter::new(it.pages)));
            sheet.family(
                "replica_pages",
                "Pages of missed rows that were read from this replica",
                "replica",
                pages,
            )?;
            let failures = replicas().map(|(which, it)| (which, ConstCounter::new(it.failures)));
            sheet.family(
                "replica_failures",
                "How often this replica could not be used for a page, or failed a check",
                "replica",
                failures,
            )?;
        }
        // Nor these, if nothing is shared with other bridges.
        if let Some(feed) = &now.feed {
            sheet.gauge(
                "nats_connected",
                "Whether the bridge is connected to NATS",
                u64::from(feed.connected),
            )?;
            let roles = FeedRole::ALL.map(|role| (role.name(), u64::from(feed.role == role)));
            sheet.family(
                "feed_role",
                "Whether the bridge reads the table for others, follows one that does, or \
                 neither",
                "role",
                roles.map(|(role, is_it)| (role, ConstGauge::new(is_it))),
            )?;
            sheet.family(
                "feed_messages",
                "Messages of the feeder, by what was done with them",
                "outcome",
                [
                    ("applied", feed.applied),
                    ("seen", feed.seen),
                    ("gap", feed.gaps),
                    ("rejected", feed.rejected),
                ]
                .map(|(outcome, count)| (outcome, ConstCounter::new(count))),
            )?;
            sheet.counter(
                "feed_rows",
                "Rows that were taken from messages instead of the table",
                feed.rows,
            )?;
            sheet.counter("feed_sent", "Messages that the bridge sent", feed.sent)?;
            sheet.counter(
                "feed_unsent",
                "Messages that the bridge could not send, whose rows the others read themselves",
                feed.unsent,
            )?;
        }
        sheet.counter(
            "page_rows",
            "Rows in pages that streams had missed and that were read from the database",
            now.page_rows,
        )?;
        sheet.counter(
            "page_failures",
            "Failed attempts to read a page",
            now.page_failures,
        )?;
        sheet.gauge(
            "failing_subscribers",
            "Users and tickets for which no page can be read, while others' can",
            now.failing_subscribers,
        )?;
        sheet.gauge(
            "listener_connected",
            "Whether the listener is connected to the database and reads the table",
            u64::from(listener.connected),
        )?;
        sheet.gauge(
            "listener_last_poll_age_seconds",
            "Time since the listener last read the table",
            age,
        )?;
        sheet.counter(
            "listener_polls",
            "Polls of the table by the listener",
            listened.polls,
        )?;
        // The names of earlier releases, for one release.
        sheet.gauge(
            "listener_hears",
            "Deprecated: tidings_listener_connected",
            u64::from(listener.connected),
        )?;
        sheet.gauge(
            "listener_last_look_age_seconds",
            "Deprecated: tidings_listener_last_poll_age_seconds",
            age,
        )?;
        sheet.counter(
            "listener_looks",
            "Deprecated: tidings_listener_polls",
            listened.polls,
        )?;
        sheet.counter(
            "listener_reconnects",
            "How often the listener reconnected to the database after losing it",
            listened.reconnects,
        )?;
        sheet.gauge(
            "doorbell_in_order",
            "Whether the trigger that sends NOTIFY exists and fires",
            u64::from(listener.doorbell_in_order),
        )?;
        sheet.gauge(
            "notify_queue_usage",
            "How full the server's notification queue is, from 0 to 1",
            listener.queue_usage.unwrap_or(f64::NAN),
        )?;
        sheet.gauge(
            "doorbell_awake",
            "Whether the bridge polls, so that writers needn't send NOTIFY",
            u64::from(listened.watching == Watching::Awake),
        )?;
        sheet.counter(
            "doorbell_changes",
            "How often the bridge switched between polling and waiting for the doorbell",
            listened.changes,
        )?;
        sheet.counter("doorbell_rings", "Doorbell rings received", listened.rings)?;
        sheet.family(
            "pool_connections",
            "Database connections of the pool, by state",
            "state",
            [("in_use", pool.in_use), ("idle", pool.idle)]
                .map(|(state, count)| (state, ConstGauge::new(count))),
        )?;
        sheet.gauge(
            "pool_size",
            "Maximum number of database connections of the pool",
            pool.most,
        )?;
        sheet.gauge(
            "pool_waiting",
            "Queries waiting for a database connection",
            pool.waiting,
        )?;
        sheet.counter(
            "pool_timeouts",
            "Queries of the pool that timed out, including the wait for a connection",
            pool.timeouts,
        )?;
        sheet.family(
            "log_lines",
            "Log lines, by level",
            "level",
            logging::counted().map(|(level, count)| (level, ConstCounter::new(count))),
        )?;
        sheet.counter(
            "log_lines_dropped",
            "Log lines dropped because standard error was not read in time",
            logging::dropped(),
        )
    }
}

/// The metrics of the process, under the names that are standard for all programs.
#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = MetricWriter(encoder);
        if let Some(now) = process::Process::now() {
            sheet.gauge(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970",
                now.started,
            )?;
            sheet.counter(
                "process_cpu_seconds",
                "CPU time used by the process",
                now.cpu_seconds,
            )?;
            sheet.gauge(
                "process_resident_memory_bytes",
                "Resident memory of the process",
                now.resident_bytes,
            )?;
        }
        if let Some((open, most)) = process::files() {
            sheet.gauge("process_open_fds", "Open files", open)?;
            sheet.gauge("process_max_fds", "Maximum number of open files", most)?;
        }
        Ok(())
    }
}

/// Encodes metrics, each with its help text.
struct MetricWriter<'a>(DescriptorEncoder<'a>);

impl MetricWriter<'_> {
    fn describe<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        ConstGauge::new(value).encode(self.describe(name, help, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        ConstCounter::new(value).encode(self.describe(name, help, MetricType::Counter)?)
    }

    fn histogram(&mut self, name: &str, help: &str, delays: &Delays) -> fmt::Result {
        self.describe(name, help, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(delays.sum, delays.count, &delays.buckets, None)
    }

    /// A family with one label.
    fn family<'l, M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        metrics: impl IntoIterator<Item = (&'l str, M)>,
    ) -> fmt::Result {
        let mut family = self.describe(name, help, M::TYPE)?;
        for (which, metric) in metrics {
            metric.encode(family.encode_family(&[(label, which)])?)?;
        }
        Ok(())
    }
}
