//! Which history of which database: transaction ids and row ids mean something
//! only within it.

/// A cluster and its timeline. A failover or a restore begins another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct History {
    /// `pg_control_system()`'s, given at `initdb`.
    pub system_identifier: i64,
    /// Counts the promotions of standbys.
    pub timeline: i32,
}

/// A history's short name, for the ids of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub u32);

impl History {
    /// Mixed into 32 bits, so that an id stays short: two histories share an
    /// epoch once in four thousand million.
    pub fn epoch(self) -> Epoch {
        // The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
        let timeline = u64::from(self.timeline.cast_unsigned());
        let mut mixed = self.system_identifier.cast_unsigned() ^ timeline.rotate_left(32);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Epoch((mixed >> 32) as u32)
    }
}
