//! Who used the processor while something was measured: it tells where the time
//! goes.

use std::time::Duration;

use crate::{
    Result,
    bridge::Bridge,
    process::Process,
    report::{Figure, Unit, measure, subject},
    server::Server,
};

/// What the load generator is called.
const GENERATOR: &str = "load generator";

/// The system counts hundredths of a second: of fewer rows nothing can be said.
const ENOUGH_ROWS: usize = 1_000;

/// Processor time of each party.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    bridge: Duration,
    postgres: Duration,
    generator: Duration,
}

impl Usage {
    /// So far. A party that there isn't has used nothing.
    pub fn of(server: &Server, bridge: Option<&Bridge>) -> Result<Self> {
        let bridge = bridge.map(|bridge| bridge.process()?.cpu()).transpose()?;
        Ok(Self {
            bridge: bridge.unwrap_or_default(),
            postgres: server.cpu()?,
            generator: Process::own()?.cpu()?,
        })
    }

    /// What was used since.
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

    /// What each of so many rows cost each party, where `whom` was measured; if
    /// these are enough to tell.
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
