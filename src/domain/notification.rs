//! Notifications and the users that they are for.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::{clock::Moment, position::RowKey, topic::Topic};

/// The user that a notification is for: the value of `user_id`, and what a request
/// authenticates as. 1 to 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The limit of the column's constraint, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Accepts 1 to [`MAX_BYTES`](Self::MAX_BYTES) bytes without NUL, which Postgres
    /// can't store.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len()) && !text.contains('\0');
        fits.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a notification is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Addressee {
    User(UserId),
    /// Everyone who has the topic.
    Topic(Topic),
}

impl Addressee {
    /// The topic, if it is one.
    pub fn topic(&self) -> Option<&Topic> {
        match self {
            Self::User(_) => None,
            Self::Topic(topic) => Some(topic),
        }
    }
}

/// One row of the table `notifications`, limited to what a browser may see.
#[derive(Clone, Debug)]
pub struct Notification {
    /// The row's place in the order of delivery.
    pub key: RowKey,
    /// The SSE event name; `None` is `message`. The column's constraint rejects line
    /// breaks and the names of the bridge's own events.
    pub event: Option<String>,
    /// At most 1 MiB.
    pub text: String,
    /// `None` if it is null or infinite.
    pub created_at: Option<Moment>,
    /// When to stop delivering it.
    pub expires: Expiry,
    /// The application's own key, at most 255 bytes: the column `ref`.
    pub reference: Option<String>,
    /// The topic, if the row is not for one user.
    pub topic: Option<Topic>,
}

/// Until when a notification is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    Never,
    At(Instant),
}

impl Expiry {
    /// Converts the seconds that were left when the row was read. So the database's clock
    /// decides, not the bridge's.
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

    pub fn has_passed(self) -> bool {
        matches!(self, Self::At(instant) if instant <= Instant::now())
    }
}
