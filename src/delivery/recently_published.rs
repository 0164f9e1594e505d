//! Rows that were published and may not be on disk yet.

use std::collections::BTreeMap;

use crate::domain::{clock::Moment, notification::Notification, position::RowKey, snapshot::Xid};

/// How many rows are remembered because they may be read again after a crash: 4 MB. Open
/// connections receive rows beyond that twice.
const REMEMBERED_ROWS: usize = 1 << 16;

/// The rows, each with its `created_at`. After a crash they are read again, although
/// open connections have already been sent them.
#[derive(Clone, Debug, Default)]
pub struct Remembered(BTreeMap<RowKey, Option<Moment>>);

impl Remembered {
    /// Whether the row was not published before. Ids are reused after a crash, so
    /// `created_at` is compared too.
    pub fn is_news(&mut self, notification: &Notification) -> bool {
        let known = self.0.get(&notification.key);
        if known == Some(&notification.created_at) {
            return false;
        }
        if known.is_some() || self.0.len() < REMEMBERED_ROWS {
            self.0.insert(notification.key, notification.created_at);
        }
        true
    }

    /// Whether the row was published.
    pub fn has(&self, notification: &Notification) -> bool {
        self.0.get(&notification.key) == Some(&notification.created_at)
    }

    /// Forgets rows below the durable floor: they are on disk.
    pub fn forget_below(&mut self, safe: Xid) {
        self.0 = self.0.split_off(&RowKey { xid: safe, id: 0 });
    }
}
