//! What was measured: sections of figures, as they are printed, written as JSON
//! and drawn.

use serde::Serialize;

/// Who was measured. The goals and the charts look figures up by these names.
pub mod subject {
    /// The bridge, with as many streams as the figure says.
    pub const TIDINGS: &str = "Tidings";
    /// The bridge, while `tidings prune` runs.
    pub const PRUNING: &str = "Tidings, pruning";
    /// The bridge, running without a stream.
    pub const IDLE: &str = "Tidings, no streams";
    /// The bare table: what an INSERT costs without anybody to tell.
    pub const NO_TRIGGER: &str = "no trigger";
    /// A trigger that calls NOTIFY for every row, as one writes it by hand.
    pub const NOTIFY: &str = "plain NOTIFY trigger";
    /// That trigger, and a connection that does nothing but LISTEN.
    pub const FLOOR: &str = "bare LISTEN";
    /// The server, all its processes together.
    pub const POSTGRES: &str = "PostgreSQL";
    /// Both together: what a notification costs the machine.
    pub const BOTH: &str = "Tidings and PostgreSQL";
    /// What the operating system keeps for the sockets.
    pub const KERNEL: &str = "kernel";
}

/// What was measured of it.
pub mod measure {
    /// Rows that were committed, a second.
    pub const INSERTED: &str = "inserted";
    /// Of the times from INSERT to event, the middle one.
    pub const P50: &str = "p50";
    /// One in a hundred took longer.
    pub const P99: &str = "p99";
    /// One in a thousand took longer.
    pub const P999: &str = "p99.9";
    /// Rows a second until the last event had arrived.
    pub const DELIVERED: &str = "delivered";
    /// Rows a second until the last row was marked as sent.
    pub const MARKED: &str = "delivered and marked";
    /// Old rows that were removed, a second.
    pub const REMOVED: &str = "removed";
    /// Until the first connection had it.
    pub const FIRST: &str = "first";
    /// Until the last connection had it.
    pub const LAST: &str = "last";
    /// Memory for each stream that has had nothing to do yet.
    pub const IDLE_STREAM: &str = "memory per idle stream";
    /// The same after every stream was sent events.
    pub const USED_STREAM: &str = "memory per stream after traffic";
    /// Processor time, of one core.
    pub const CPU: &str = "processor";
    /// Processor time for each notification.
    pub const CPU_PER_ROW: &str = "processor per notification";
    /// Until everyone had all that was owed.
    pub const CAUGHT_UP: &str = "all caught up";
    /// The most sessions at any one time.
    pub const PEAK_CONNECTIONS: &str = "peak database connections";
    /// The most memory at any one time.
    pub const PEAK_MEMORY: &str = "peak memory";
}

/// At which size it was measured.
pub mod at {
    /// Connections that INSERT.
    pub const WRITERS: &str = "writers";
    /// Open streams.
    pub const STREAMS: &str = "streams";
    /// Rows that are due each second.
    pub const RATE: &str = "rows/s";
    /// Rows that one INSERT brings.
    pub const BATCH: &str = "rows per INSERT";
    /// Connections of one user.
    pub const CONNECTIONS: &str = "connections";
    /// Rows that the table holds before.
    pub const ROWS: &str = "rows in table";
    /// Users that have no stream, and a row that waits for them.
    pub const AWAY: &str = "users away";
}

/// Figures that belong together, taken in one run.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// As on the command line.
    pub name: &'static str,
    /// A heading.
    pub title: String,
    /// What was done, in a sentence or two: sizes that don't vary, how it was timed.
    pub setting: String,
    /// In the order in which they are printed.
    pub figures: Vec<Figure>,
}

/// One number, with all that is needed to say what it is a number of.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Who was measured: see [`subject`].
    pub subject: String,
    /// What was measured of it: see [`measure`].
    pub measure: String,
    /// At which sizes: see [`at`].
    pub at: Vec<(String, f64)>,
    /// In its unit.
    pub value: f64,
    /// The unit.
    pub unit: Unit,
    /// What became of the events that this figure rests on, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// What it was in each round, where others were measured in turn with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
}

impl Figure {
    /// A figure that doesn't depend on a size and rests on no events.
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

    /// The same, resting on these events.
    pub fn counts(mut self, counts: Counts) -> Self {
        self.counts = Some(counts);
        self
    }

    /// The same, which was this in each round.
    pub fn rounds(mut self, rounds: Vec<f64>) -> Self {
        self.rounds = rounds;
        self
    }

    /// How many times the other it is. Where both were measured in turn, it is the
    /// median of the rounds: what else the machine did in one falls on both.
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

/// What a figure's value is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows, events or transactions a second.
    PerSecond,
    /// Seconds.
    Seconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Millionths of a second.
    Microseconds,
    /// Bytes.
    Bytes,
    /// Per cent of one core's time.
    PercentOfCore,
    /// Pieces.
    Count,
}

/// What became of the events that were expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows times the connections that they concern.
    pub expected: u64,
    /// Events that arrived, repeats included.
    pub received: u64,
    /// Events that were expected and never came.
    pub missing: u64,
    /// Events that came to one connection again.
    pub repeated: u64,
    /// Events that came to somebody whom they don't concern.
    pub wrong_user: u64,
}

impl Counts {
    /// The sums of both.
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

/// The one in the middle; of none, not a number.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
