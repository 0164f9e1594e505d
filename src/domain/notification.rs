//! The domain: a notification, and whom it concerns.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::position::RowKey;

/// Whom a notification concerns: the value of `user_id`, and what an identity
/// resolves to. 1 to 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The bound of the column's constraint, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Accepts 1 to [`MAX_BYTES`](Self::MAX_BYTES) bytes without NUL, which
    /// Postgres can't store.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len()) && !text.contains('\0');
        fits.then(|| Self(text.into()))
    }

    /// The id as the database knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One row of the table `notifications`, as far as a browser may see it.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Where it stands in the order of delivery.
    pub key: RowKey,
    /// The SSE event name; `None` is `message`. The column's constraint keeps
    /// line breaks and the names of the bridge's own events out.
    pub event: Option<String>,
    /// What it says, up to 1 MiB.
    pub text: String,
    /// RFC 3339 in UTC, with microseconds; `None` for the times that have no
    /// such form (`infinity`).
    pub created_at: Option<String>,
    /// After this it is not delivered any more.
    pub expires: Expiry,
}

/// Until when a notification is worth delivering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It stays valid.
    Never,
    /// It is void from then on.
    At(Instant),
}

impl Expiry {
    /// From the seconds that were left when the row was read: the database's
    /// clock decides, not the bridge's.
    pub fn from_seconds_left(seconds: Option<f64>) -> Self {
        let now = Instant::now();
        let Some(seconds) = seconds else {
            return Self::Never;
        };
        Duration::try_from_secs_f64(seconds.max(0.0))
            .ok()
            .and_then(|left| now.checked_add(left))
            .map_or(Self::Never, Self::At)
    }

    /// Whether the time has come.
    pub fn has_passed(self) -> bool {
        matches!(self, Self::At(instant) if instant <= Instant::now())
    }
}
