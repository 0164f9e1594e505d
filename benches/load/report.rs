//! The measurements: sections of figures, which are printed, written as JSON, and drawn.

use serde::Serialize;

/// What was measured. The goals and the charts look figures up by these names.
pub mod subject {
    /// The bridge, with as many streams as the figure says.
    pub const TIDINGS: &str = "Tidings";
    /// The bridge, while `tidings prune` runs.
    pub const PRUNING: &str = "Tidings, pruning";
    /// The bridge, running without streams.
    pub const IDLE: &str = "Tidings, no streams";
    /// The bare table: the cost of an INSERT that notifies no one.
    pub const NO_TRIGGER: &str = "no trigger";
    /// A trigger that calls NOTIFY for every row, as written by hand.
    pub const NOTIFY: &str = "plain NOTIFY trigger";
    /// That trigger, and a connection that only LISTENs.
    pub const FLOOR: &str = "bare LISTEN";
    /// Rows for users, measured alternately with those for topics.
    pub const USER_ROWS: &str = "rows for users";
    pub const TOPIC_ROWS: &str = "rows for topics";
    /// A bridge that keeps no rows of the last minute.
    pub const WITHOUT_RECENT: &str = "Tidings without recent rows";
    pub const WITH_REPLICA: &str = "Tidings without recent rows, with a replica";
    /// The last of several bridges that share what they read.
    pub const WITH_NATS: &str = "Tidings with NATS";
    /// All processes of the server.
    pub const POSTGRES: &str = "PostgreSQL";
    pub const POSTGRES_WITH_NATS: &str = "PostgreSQL, bridges with NATS";
    /// Both together: the total cost of a notification.
    pub const BOTH: &str = "Tidings and PostgreSQL";
    /// What the operating system uses for the sockets.
    pub const KERNEL: &str = "kernel";
}

/// The quantity that was measured.
pub mod measure {
    /// Rows committed per second.
    pub const INSERTED: &str = "inserted";
    /// The median time from INSERT to event.
    pub const P50: &str = "p50";
    /// The 99th percentile.
    pub const P99: &str = "p99";
    /// The 99.9th percentile.
    pub const P999: &str = "p99.9";
    /// Rows per second until the last event had arrived.
    pub const DELIVERED: &str = "delivered";
    /// Rows per second until the last row was marked as sent.
    pub const MARKED: &str = "delivered and marked";
    /// Old rows removed per second.
    pub const REMOVED: &str = "removed";
    /// Time until the first connection had received it.
    pub const FIRST: &str = "first";
    /// Time until the last connection had received it.
    pub const LAST: &str = "last";
    /// Time from the commit until the last connection had received it.
    pub const LAST_AFTER_COMMIT: &str = "after commit, last";
    /// Time per row of each connection that INSERTs.
    pub const INSERT: &str = "INSERT";
    /// How long the statement takes that reads a page.
    pub const PAGE: &str = "resume page";
    /// Log written for where users continue in their topics: for the first time.
    pub const FIRST_CURSORS: &str = "WAL of cursors, first";
    /// The same for users who have a cursor.
    pub const LATER_CURSORS: &str = "WAL of cursors, later";
    /// Memory per stream that its topics take.
    pub const TOPICS_MEMORY: &str = "memory per stream for its topics";
    /// Memory per stream that has not received anything yet.
    pub const IDLE_STREAM: &str = "memory per idle stream";
    /// The same after every stream has received events.
    pub const USED_STREAM: &str = "memory per stream after traffic";
    /// CPU time, in percent of one core.
    pub const CPU: &str = "CPU time";
    /// CPU time per notification.
    pub const CPU_PER_ROW: &str = "CPU time per notification";
    /// The same for each bridge after the first.
    pub const FURTHER_BRIDGE: &str = "CPU time per further bridge";
    /// The difference of the latency to that of one bridge that polls.
    pub const ADDED_P50: &str = "p50, added to that of one bridge";
    pub const ADDED_P99: &str = "p99, added to that of one bridge";
    /// CPU time of the tail query for each row.
    pub const TAIL_ROW: &str = "tail query, per row";
    /// Pages that returning streams had the bridge read.
    pub const PAGES_READ: &str = "pages read from the database";
    /// CPU time of the server for each stream that returns.
    pub const CPU_PER_RETURN: &str = "PostgreSQL: CPU time per returning stream";
    /// Time until every client had received everything it was owed.
    pub const CAUGHT_UP: &str = "time until all have caught up";
    /// The largest number of concurrent sessions.
    pub const PEAK_CONNECTIONS: &str = "peak database connections";
    pub const PEAK_MEMORY: &str = "peak memory";
}

/// The size at which it was measured.
pub mod at {
    /// Connections that INSERT.
    pub const WRITERS: &str = "writers";
    /// Bridges on the database.
    pub const BRIDGES: &str = "bridges";
    /// Open streams.
    pub const STREAMS: &str = "streams";
    /// Rows that are due each second.
    pub const RATE: &str = "rows/s";
    /// Rows per INSERT.
    pub const BATCH: &str = "rows per INSERT";
    /// Connections of one user.
    pub const CONNECTIONS: &str = "connections";
    /// Rows in the table before the measurement.
    pub const ROWS: &str = "rows in table";
    /// Topics of each user.
    pub const TOPICS: &str = "topics";
    /// Users without a stream who have an unsent row.
    pub const AWAY: &str = "offline users";
}

/// Figures that belong together, taken in one run.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// As on the command line.
    pub name: &'static str,
    /// The heading.
    pub title: String,
    /// What was done, in a sentence or two: sizes that don't vary, and how it was timed.
    pub setting: String,
    /// In the order in which they are printed.
    pub figures: Vec<Figure>,
}

/// One number, with everything needed to interpret it.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured: see [`subject`].
    pub subject: String,
    /// The quantity: see [`measure`].
    pub measure: String,
    /// The sizes: see [`at`].
    pub at: Vec<(String, f64)>,
    pub value: f64,
    pub unit: Unit,
    /// The counts of the events that this figure is based on, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// The value in each round, if it was measured alternately with others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
}

impl Figure {
    /// A figure that doesn't depend on a size and isn't based on events.
    pub fn new(subject: &str, measure: &str, value: f64, unit: Unit) -> Self {
        Self {
            subject: subject.to_owned(),
            measure: measure.to_owned(),
            at: Vec::new(),
            value,
            unit,
            counts: None,
            rounds: Vec::new(),
        }
    }

    /// The same, taken at this size.
    pub fn at(mut self, axis: &str, size: f64) -> Self {
        self.at.push((axis.to_owned(), size));
        self
    }

    /// The same, based on these events.
    pub fn counts(mut self, counts: Counts) -> Self {
        self.counts = Some(counts);
        self
    }

    /// The same, with these values in the individual rounds.
    pub fn rounds(mut self, rounds: Vec<f64>) -> Self {
        self.rounds = rounds;
        self
    }

    /// The ratio to another figure. If both were measured alternately, it is the median
    /// over the rounds, since other load on the machine affects both figures of a round.
    pub fn times(&self, other: &Self) -> f64 {
        let rounds = self.rounds.iter().zip(&other.rounds);
        let times: Vec<f64> = rounds.map(|(one, other)| one / other).collect();
        if times.is_empty() {
            self.value / other.value
        } else {
            median(&times)
        }
    }

    /// Its size along this axis.
    pub fn size(&self, axis: &str) -> Option<f64> {
        let (_, size) = self.at.iter().find(|(name, _)| name == axis)?;
        Some(*size)
    }
}

/// The unit of a figure's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows, events or transactions per second.
    PerSecond,
    Seconds,
    Milliseconds,
    Microseconds,
    Bytes,
    /// Percent of one core's time.
    PercentOfCore,
    /// A plain number.
    Count,
}

/// Counts of expected events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows times the connections that should receive them.
    pub expected: u64,
    /// Events that arrived, duplicates included.
    pub received: u64,
    /// Expected events that never arrived.
    pub missing: u64,
    /// Events that one connection received again.
    pub repeated: u64,
    /// Events that a user received who should not have.
    pub wrong_user: u64,
}

impl Counts {
    /// The sum of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            expected: self.expected + other.expected,
            received: self.received + other.received,
            missing: self.missing + other.missing,
            repeated: self.repeated + other.repeated,
            wrong_user: self.wrong_user + other.wrong_user,
        }
    }
}

/// The median; NaN if there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
