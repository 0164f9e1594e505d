//! The answer of the readiness check.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

/// Whether the bridge should receive clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadinessStatus {
    /// The listener is connected and polls.
    Ready,
    /// The listener has lost the database, or would find rows late or not at all.
    ListenerFailing,
    /// The listener works, but pages can't be read.
    ReadsFailing,
    /// Rows are delivered, but some could not be marked for a while.
    Unmarked,
    /// A background task has ended unexpectedly, and the process is stopping.
    Broken,
    Draining,
}

impl ReadinessStatus {
    /// The name in `/health/ready` and in the view `tidings_bridges`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::ListenerFailing => "listener-failing",
            Self::ReadsFailing => "reads-failing",
            Self::Unmarked => "unmarked",
            Self::Broken => "broken",
            Self::Draining => "draining",
        }
    }

    /// The name in the deprecated field `status` of `/health/ready`.
    fn former_name(self) -> &'static str {
        match self {
            Self::ListenerFailing => "deaf",
            Self::ReadsFailing => "blind",
            other => other.name(),
        }
    }
}

/// What the bridge reports about its readiness.
#[derive(Debug)]
pub struct Readiness {
    pub status: ReadinessStatus,
    pub reason: Option<String>,
    /// Milliseconds since the listener last polled the table.
    pub last_poll_ms: Option<u64>,
    /// How many rows that were sent can't be marked, for how long, and why. They are
    /// delivered nevertheless.
    pub marks: Option<String>,
}

impl Readiness {
    pub fn is_ready(&self) -> bool {
        self.status == ReadinessStatus::Ready
    }
}

/// The body of the response of `/health/ready`. `status` and `last_look_ms` are the names
/// of earlier releases.
impl Serialize for Readiness {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("readiness", self.status.name())?;
        map.serialize_entry("status", self.status.former_name())?;
        if let Some(reason) = &self.reason {
            map.serialize_entry("reason", reason)?;
        }
        map.serialize_entry("last_poll_ms", &self.last_poll_ms)?;
        map.serialize_entry("last_look_ms", &self.last_poll_ms)?;
        if let Some(marks) = &self.marks {
            map.serialize_entry("marks", marks)?;
        }
        map.end()
    }
}
