//! Which history of which database: transaction ids and row ids mean something
//! only within it.

use std::error::Error;

use tokio_postgres::types::{FromSql, ToSql, Type, accepts, to_sql_checked};

/// A cluster, and the life of its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct History {
    /// `pg_control_system()`'s, given at `initdb`.
    pub system_identifier: i64,
    /// Since the last failover and the last crash.
    pub incarnation: Incarnation,
}

/// The life of a primary between two crashes.
///
/// A failover or a restore begins another timeline, in which every id means
/// something else. A crash keeps the timeline, but ids that were handed out and
/// not yet written to disk are handed out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Incarnation {
    /// Counts the promotions of standbys.
    pub timeline: i32,
    /// What a crash changes.
    pub since: Since,
}

/// When a bridge first found the unlogged table `tidings_incarnation` empty, in
/// microseconds: crash recovery empties it, also after a single backend was killed,
/// and a restart in order keeps it. `docs/decisions/0010` compares it with other signs
/// of a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since(pub i64);

/// A history's short name, for the ids of events: what a failover or a restore
/// changes, and a crash does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub u32);

impl History {
    /// Mixed into 32 bits, so that an id stays short: two histories share an
    /// epoch once in four thousand million.
    pub fn epoch(self) -> Epoch {
        let timeline = u64::from(self.incarnation.timeline.cast_unsigned());
        let mixed = mix(self.system_identifier.cast_unsigned() ^ timeline.rotate_left(32));
        Epoch((mixed >> 32) as u32)
    }
}

impl Since {
    /// The table is empty: Postgres has crashed, and no bridge has begun the next
    /// incarnation yet. A time that no bridge ever finds the table empty at.
    pub const NONE: Self = Self(i64::MIN);

    /// Mixed into 21 bits, which are three bytes in an id: one crash in two
    /// million goes unnoticed by an id that a client brings back.
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
    /// Any fixed beginning will do: it is only compared.
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
