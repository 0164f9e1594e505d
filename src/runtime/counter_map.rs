//! Counters by key.

use std::{collections::HashMap, hash::Hash};

/// A map of counters. A key whose count is zero uses no memory.
#[derive(Debug)]
pub struct CounterMap<K>(HashMap<K, usize>);

impl<K> Default for CounterMap<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> CounterMap<K> {
    /// The count of this key.
    pub fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or_default()
    }

    pub fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    pub fn remove(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }

    /// Whether all counts are zero.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
