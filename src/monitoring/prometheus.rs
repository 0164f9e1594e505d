//! The metrics, in the OpenMetrics text format or in that of Prometheus.
//! `docs/operations/metrics.md` explains what each of them is for.

mod exposition;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, NoLabelSet, text,
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};

use crate::{
    delivery::{counters::Delays, health::Watching, stream_end::Ended},
    monitoring::{logging, process, stats::Vitals},
};

pub use self::exposition::Exposition;

/// All metrics of the bridge and its process.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    pub fn new(vitals: Arc<Vitals>, ended: &Ended) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(OfProcess));
        let tidings = registry.sub_registry_with_prefix("tidings");
        tidings.register(
            "build",
            "Which Tidings it is",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        tidings.register(
            "refused",
            "Requests and sockets that were turned away, by reason",
            vitals.refusals.counted(),
        );
        tidings.register(
            "connections_ended",
            "Streams that have ended, by reason",
            ended.counted(),
        );
        tidings.register(
            "page_seconds",
            "How long streams waited for pages of what they had missed",
            vitals.reads.seconds.clone(),
        );
        tidings.register_collector(Box::new(OfBridge(vitals)));
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
struct OfBridge(Arc<Vitals>);

impl Collector for OfBridge {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = self.0.figures();
        let (listener, pool) = (&now.listener, &now.pool);
        let is_awake = listener.watching == Watching::Awake;
        let age = now.readiness.last_look_ms.map(|age| age as f64 / 1_000.0);
        let mut sheet = Sheet(encoder);
        sheet.gauge(
            "ready",
            "Whether it should be sent clients",
            u64::from(now.readiness.is_ready()),
        )?;
        sheet.gauge("connections", "Streams that are open", now.connections)?;
        sheet.gauge(
            "connections_limit",
            "Streams that may be open",
            now.connections_limit,
        )?;
        sheet.counter("connections_opened", "Streams that were opened", now.opened)?;
        sheet.gauge("users", "Users with a stream", now.users)?;
        sheet.counter(
            "delivered_rows",
            "Rows that were written to sockets",
            now.delivered,
        )?;
        sheet.histogram(
            "delay_seconds",
            "How long rows took from created_at to sockets of streams that were open before",
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
            "Rows that wait for live streams",
            now.waiting_rows,
        )?;
        sheet.counter(
            "mailbox_overflows",
            "Streams that were sent back to reading pages because they were too slow",
            now.overflows,
        )?;
        sheet.counter("marked_rows", "Rows that were marked as sent", now.marked)?;
        sheet.gauge(
            "rows_in_flight",
            "Rows that were written to a connection less than TIDINGS_SETTLE ago, for each connection",
            now.in_flight,
        )?;
        sheet.gauge(
            "unmarked_rows",
            "Rows that have settled and whose marks are still to be written",
            now.unmarked,
        )?;
        sheet.gauge(
            "marks_stuck",
            "Rows that were sent and can't be marked at the moment: locked, failing, or the database can't mark any",
            now.marks_stuck,
        )?;
        sheet.counter(
            "mark_failures",
            "Tries to write marks that failed",
            now.mark_failures,
        )?;
        sheet.counter(
            "lost_marks",
            "Rows that go without a mark, and may be sent again",
            now.lost_marks,
        )?;
        sheet.counter(
            "pruned_rows",
            "Rows that were removed because they had had their time",
            now.pruned,
        )?;
        sheet.gauge(
            "prune_failed_rows",
            "Rows that have had their time and can't be removed at the moment",
            now.prune_failures,
        )?;
        sheet.gauge(
            "pages_wanted",
            "Streams that wait for a page of what they missed",
            now.pages_wanted,
        )?;
        sheet.counter(
            "page_rows",
            "Rows in pages of what streams had missed",
            now.page_rows,
        )?;
        sheet.counter(
            "page_failures",
            "Tries to read a page that failed",
            now.page_failures,
        )?;
        sheet.gauge(
            "listener_hears",
            "Whether the listener hears the database",
            u64::from(listener.hears),
        )?;
        sheet.gauge(
            "listener_last_look_age_seconds",
            "How long ago the listener last read the table",
            age.unwrap_or(f64::INFINITY),
        )?;
        sheet.counter(
            "listener_looks",
            "Looks of the listener at the table",
            listener.looks,
        )?;
        sheet.counter(
            "listener_reconnects",
            "How often the listener found the database again that it had lost",
            listener.reconnects,
        )?;
        sheet.gauge(
            "doorbell_in_order",
            "Whether the trigger that rings is there and fires",
            u64::from(listener.doorbell_in_order),
        )?;
        sheet.gauge(
            "notify_queue_usage",
            "How full the server's notification queue is, from 0 to 1",
            listener.queue_usage.unwrap_or(f64::NAN),
        )?;
        sheet.gauge(
            "doorbell_awake",
            "Whether the bridge polls, so that writers need not ring",
            u64::from(is_awake),
        )?;
        sheet.counter(
            "doorbell_changes",
            "How often the bridge changed between polling and waiting for the bell",
            listener.changes,
        )?;
        sheet.counter(
            "doorbell_rings",
            "Bells that the bridge woke up by",
            listener.rings,
        )?;
        sheet.gauges(
            "pool_connections",
            "Database connections of the pool, by state",
            "state",
            &[("in_use", pool.in_use), ("idle", pool.idle)],
        )?;
        sheet.gauge(
            "pool_size",
            "Database connections that the pool may have",
            pool.most,
        )?;
        sheet.gauge(
            "pool_waiting",
            "How many wait for a database connection",
            pool.waiting,
        )?;
        sheet.counter(
            "pool_timeouts",
            "Queries and connections of the pool that took too long",
            pool.timeouts,
        )?;
        sheet.counters(
            "log_lines",
            "Lines of the log at these levels",
            "level",
            &logging::counted(),
        )?;
        sheet.counter(
            "log_lines_dropped",
            "Lines of the log that were dropped because standard error was not read in time",
            logging::dropped(),
        )
    }
}

/// The metrics of the process, under the names that are standard for all programs.
#[derive(Debug)]
struct OfProcess;

impl Collector for OfProcess {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = Sheet(encoder);
        if let Some(now) = process::Process::now() {
            sheet.gauge(
                "process_start_time_seconds",
                "When the process began, since 1970",
                now.started,
            )?;
            sheet.counter(
                "process_cpu_seconds",
                "The time that processors have worked for it",
                now.cpu_seconds,
            )?;
            sheet.gauge(
                "process_resident_memory_bytes",
                "The memory that it occupies",
                now.resident_bytes,
            )?;
        }
        if let Some((open, most)) = process::files() {
            sheet.gauge("process_open_fds", "Files that it has open", open)?;
            sheet.gauge("process_max_fds", "Files that it may have open", most)?;
        }
        Ok(())
    }
}

/// Encodes metrics, each with its help text.
struct Sheet<'a>(DescriptorEncoder<'a>);

impl Sheet<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn histogram(&mut self, name: &str, help: &str, delays: &Delays) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(delays.sum, delays.count, &delays.buckets, None)
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, usize)],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (which, value) in values {
            ConstGauge::new(*value).encode(family.encode_family(&[(label, *which)])?)?;
        }
        Ok(())
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, u64)],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (which, value) in values {
            ConstCounter::new(*value).encode(family.encode_family(&[(label, *which)])?)?;
        }
        Ok(())
    }
}
