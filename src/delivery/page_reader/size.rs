//! How large a page is.

use super::rows::TEXT_BYTES;
use crate::delivery::batch::Event;

#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    pub rows: usize,
    /// Bytes of text after which no further row is added. The row that exceeds the limit
    /// is still included, so a page has at most this plus one text (1 MiB).
    pub bytes: i64,
}

impl PageSize {
    /// A page of the table's tail: large enough that a row costs little, small enough to
    /// take only milliseconds.
    pub const TAIL: Self = Self {
        rows: 1_000,
        bytes: 1 << 20,
    };

    /// A page of one user's catch-up. Every connection may hold one at the same time.
    pub const USER: Self = Self {
        rows: 500,
        bytes: 256 << 10,
    };

    /// Half the size, for a network that is too slow; at least one row.
    pub fn halved(self) -> Self {
        Self {
            rows: (self.rows / 2).max(1),
            bytes: (self.bytes / 2).max(1),
        }
    }

    /// The maximum memory that a page of this size takes, in bytes.
    pub fn most_bytes(self) -> usize {
        let texts = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        texts + TEXT_BYTES + self.rows * Event::MEMORY
    }

    /// The share of each of the transactions that are read in pieces.
    pub(super) fn shared_by(self, transactions: usize) -> Self {
        let transactions = transactions.max(1);
        Self {
            rows: (self.rows / transactions).max(1),
            bytes: (self.bytes / transactions as i64).max(1),
        }
    }

    /// The share of all other transactions meanwhile. It is added to the page, so that
    /// the large transactions don't take longer.
    pub(super) fn beside(self) -> Self {
        Self {
            rows: (self.rows / BESIDE).max(1),
            bytes: (self.bytes / BESIDE as i64).max(1),
        }
    }

    /// Asks for one row more, which shows whether rows remain.
    pub(super) fn limit(self) -> i64 {
        self.rows as i64 + 1
    }
}

/// While transactions are read in pieces, a page also holds other rows, up to the size of
/// a page divided by this: 250 rows, so that with pages that take some 20 ms, more than
/// ten thousand rows per second overtake a large transaction. A transaction that fits
/// into those 250 rows is neither split nor overtaken by a later one.
const BESIDE: usize = 4;

/// How many transactions are read in pieces at once. Each may add a text to a page: 16
/// MiB at most. While there are this many, one has to be read to its end before another
/// begins. An event's id can name four times as many.
pub const MOST_BEGUN: usize = 16;
