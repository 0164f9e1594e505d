//! Processor time by process during a measurement: it shows where the time is spent.

use std::time::Duration;

use crate::{
    Result,
    bridge::Bridge,
    process::Process,
    report::{Figure, Unit, measure, subject},
    server::Server,
};

/// The name of the load generator in figures.
const GENERATOR: &str = "load generator";

/// The system counts hundredths of a second: with fewer rows, the result would be
/// meaningless.
const ENOUGH_ROWS: usize = 1_000;

/// Processor time of each party.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub bridge: Duration,
    /// All processes of the server.
    pub postgres: Duration,
    generator: Duration,
}

impl Usage {
    /// The usage so far. A party that doesn't exist has used nothing.
    pub fn of(server: &Server, bridge: Option<&Bridge>) -> Result<Self> {
        let bridge = bridge.map(|bridge| bridge.process()?.cpu()).transpose()?;
        Ok(Self {
            bridge: bridge.unwrap_or_default(),
            postgres: server.cpu()?,
            generator: Process::own()?.cpu()?,
        })
    }

    /// The usage since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            bridge: self.bridge.saturating_sub(earlier.bridge),
            postgres: self.postgres.saturating_sub(earlier.postgres),
            generator: self.generator.saturating_sub(earlier.generator),
        }
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            bridge: self.bridge + other.bridge,
            postgres: self.postgres + other.postgres,
            generator: self.generator + other.generator,
        }
    }

    /// The cost of each of `rows` rows for each party, for the subject `whom`; nothing if
    /// there are too few rows.
    pub fn per_row(self, whom: &str, rows: usize) -> Vec<Figure> {
        if rows < ENOUGH_ROWS {
            return Vec::new();
        }
        let parties = [
            (subject::TIDINGS, self.bridge),
            (subject::POSTGRES, self.postgres),
            (GENERATOR, self.generator),
        ];
        let figure = |(party, time): (&str, Duration)| {
            let measure = format!("{}: {party}", measure::CPU_PER_ROW);
            let each = time.as_secs_f64() * 1e6 / rows as f64;
            Figure::new(whom, &measure, each, Unit::Microseconds)
        };
        let used = parties.into_iter().filter(|(_, time)| !time.is_zero());
        used.map(figure).collect()
    }
}
