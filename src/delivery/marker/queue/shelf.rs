//! The rows that are held for one reason, in the order in which they are due.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{ROWS_AT_ONCE, Row};

/// Rows that are due within this time are tried together. Otherwise thousands of rows
/// that were locked one after the other would cost a statement each.
const TOGETHER: Duration = Duration::from_millis(50);

/// The rows that are held for one reason.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Those not in the current statement, by when they are due.
    pub(super) due: BTreeSet<(Instant, Row)>,
    /// How many there are, including those in the current statement.
    pub(super) count: usize,
    /// Rows in the next statement: halved after one that failed, doubled after one that
    /// succeeded.
    pub(super) size: usize,
}

impl Default for Shelf {
    fn default() -> Self {
        Self {
            due: BTreeSet::new(),
            count: 0,
            size: ROWS_AT_ONCE,
        }
    }
}

impl Shelf {
    /// Takes the rows of one incarnation that are due, in that order.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        while rows.len() < self.size
            && let Some(&(due, row)) = self.due.first()
            && due <= now + TOGETHER
            && rows.first().is_none_or(|first| first.0 == row.0)
        {
            self.due.pop_first();
            rows.push(row);
        }
        rows
    }
}
