//! Which rows may be marked, and which must be, if no row settles by time.
//!
//! In that case a row is marked only after a client that received it has returned with its id, or
//! after a bridge has ended a stream that the row was written to. If a page is left or a bridge is
//! killed, their rows stay unmarked.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::oracle::{Number, Rows};

/// If a program takes longer than this, on a very busy machine, its result is ignored: rows of its
/// first steps may have settled by time.
const BY_TIME: Duration = Duration::from_secs(55);

/// When rows settle in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// As soon as they are written.
    AtOnce,
    /// Later than the end of any program.
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
    /// Starts with no rows, for a program that begins now.
    pub fn begin() -> Self {
        Self {
            rows: BTreeSet::new(),
            began: Instant::now(),
        }
    }

    /// A client that has received these rows has returned, or the bridge has ended its stream.
    pub fn add(&mut self, rows: impl IntoIterator<Item = Number>) {
        self.rows.extend(rows);
    }

    /// Fails if any other row of this table is marked.
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
