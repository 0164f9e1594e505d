//! Rows that were handed out and may not be on disk yet.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::domain::{notification::Notification, position::RowKey, snapshot::Xid};

/// Rows that are remembered because a crash may have them read again: 4 MB.
/// Those beyond come twice to open connections then.
const REMEMBERED_ROWS: usize = 1 << 16;

/// After a crash they are read again, and open connections have been sent them.
#[derive(Debug, Default)]
pub struct Remembered(BTreeMap<RowKey, u64>);

impl Remembered {
    /// Whether it was not handed out before. Ids are handed out again after a
    /// crash, so the time is looked at too.
    pub fn is_news(&mut self, notification: &Notification) -> bool {
        let mut hasher = DefaultHasher::new();
        notification.created_at.hash(&mut hasher);
        let created_at = hasher.finish();
        let known = self.0.get(&notification.key);
        if known == Some(&created_at) {
            return false;
        }
        if known.is_some() || self.0.len() < REMEMBERED_ROWS {
            self.0.insert(notification.key, created_at);
        }
        true
    }

    /// What lies below is on disk.
    pub fn forget_below(&mut self, safe: Xid) {
        self.0 = self.0.split_off(&RowKey { xid: safe, id: 0 });
    }
}
