//! Identifies the history of a database: transaction ids and row ids mean something only
//! within one.

use std::error::Error;

use serde::{Deserialize, Serialize};
use tokio_postgres::types::{FromSql, ToSql, Type, accepts, to_sql_checked};

/// A cluster and one incarnation of its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct History {
    /// From `pg_control_system()`, assigned by `initdb`.
    pub system_identifier: i64,
    pub incarnation: Incarnation,
}

/// The life of a primary between two crashes.
///
/// A failover or a restore starts a new timeline, in which every id means something else.
/// A crash keeps the timeline, but ids that were assigned and not yet flushed to disk are
/// assigned again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation {
    /// Increased by each promotion of a standby.
    pub timeline: i32,
    /// Changed by a crash.
    pub since: Since,
}

/// When a bridge first found the unlogged table `tidings_incarnation` empty, in
/// microseconds. Crash recovery empties the table, also after a single backend was
/// killed; a clean restart keeps it. `docs/decisions/0010` compares this with other signs
/// of a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Since(pub i64);

/// A short hash of the history for event ids. A failover or a restore changes it, a crash
/// does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub u32);

impl History {
    /// Hashed to 32 bits to keep event ids short: the chance that two histories share an
    /// epoch is one in 4 billion.
    pub fn epoch(self) -> Epoch {
        let timeline = u64::from(self.incarnation.timeline.cast_unsigned());
        let mixed = mix(self.system_identifier.cast_unsigned() ^ timeline.rotate_left(32));
        Epoch((mixed >> 32) as u32)
    }
}

impl Since {
    /// The table is empty: Postgres has crashed, and no bridge has started the next
    /// incarnation yet. No bridge ever records this value.
    pub const NONE: Self = Self(i64::MIN);

    /// Hashed to 21 bits, which are three bytes in an event id: with a chance of one in
    /// two million, an id that a client presents doesn't reveal the crash.
    pub fn short(self) -> u32 {
        (mix(self.0.cast_unsigned()) >> 43) as u32
    }
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl<'a> FromSql<'a> for Since {
    /// Postgres' epoch is kept: the value is only compared.
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        i64::from_sql(&Type::INT8, raw).map(Self)
    }

    accepts!(TIMESTAMPTZ);
}

impl ToSql for Since {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn Error + Sync + Send>> {
        self.0.to_sql(&Type::INT8, out)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}
