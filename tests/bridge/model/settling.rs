//! Which rows may be marked, and which must be, if no row settles by time.
//!
//! Then a row is marked only after a client that received it has returned with its id, or
//! after a bridge has ended a stream that it was written to. A page that is left or a
//! bridge that is killed leaves its rows unmarked.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::oracle::{Number, Rows};

/// A program that takes longer than this, on a machine that is very busy, shows nothing:
/// rows of its first steps may settle by time.
const BY_TIME: Duration = Duration::from_secs(55);

/// When rows settle in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// As soon as they are written.
    AtOnce,
    /// Later than any program takes.
    Never,
}

impl Settle {
    pub fn setting(self) -> &'static str {
        match self {
            Self::AtOnce => "--settle=0s",
            Self::Never => "--settle=60s",
        }
    }
}

/// The rows that may be marked by now.
#[derive(Debug)]
pub struct Settled {
    rows: BTreeSet<Number>,
    began: Instant,
}

impl Settled {
    /// None, of a program that begins now.
    pub fn begin() -> Self {
        Self {
            rows: BTreeSet::new(),
            began: Instant::now(),
        }
    }

    /// A client that has received these rows returns, or the bridge has ended its stream.
    pub fn add(&mut self, rows: impl IntoIterator<Item = Number>) {
        self.rows.extend(rows);
    }

    /// No other row of this table may be marked.
    pub fn judge(&self, table: &Rows) -> Result<(), String> {
        if self.began.elapsed() > BY_TIME {
            return Ok(());
        }
        let sent = table.iter().filter(|(_, row)| row.sent);
        let wrong: Vec<_> = sent
            .filter(|(number, _)| !self.rows.contains(number))
            .map(|(number, row)| (number, row.key))
            .collect();
        match wrong[..] {
            [] => Ok(()),
            _ => Err(format!("marked, and never settled: {wrong:?}")),
        }
    }
}
