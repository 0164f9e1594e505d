//! Whether the bridge hears the database, for readiness.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

/// Older than this, the last look proves nothing: the listener looks at least
/// once a second while it hears the database.
const PROOF_LIMIT: Duration = Duration::from_secs(5);

/// What the listener last saw, written by it alone.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_look: Option<Instant>,
    trouble: Option<String>,
    draining: bool,
}

/// Whether the bridge should be sent clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It hears the database.
    Ready,
    /// It does not.
    Deaf,
    /// It is stopping.
    Draining,
}

/// The body of `/health/ready`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether it should, or why not.
    pub status: Status,
    /// What is wrong, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long ago the listener last read the table, in milliseconds.
    pub last_look_ms: Option<u64>,
}

impl Health {
    /// The listener has read the table.
    pub fn looked(&self) {
        let mut state = self.state();
        state.last_look = Some(Instant::now());
        state.trouble = None;
    }

    /// The listener has lost its connection.
    pub fn lost(&self, reason: String) {
        self.state().trouble = Some(reason);
    }

    /// The bridge is stopping.
    pub fn drain(&self) {
        self.state().draining = true;
    }

    /// Whether the bridge should be sent clients.
    pub fn readiness(&self) -> Readiness {
        let state = self.state();
        let age = state.last_look.map(|look| look.elapsed());
        let (status, reason) = if state.draining {
            (Status::Draining, None)
        } else if let Some(trouble) = &state.trouble {
            (Status::Deaf, Some(trouble.clone()))
        } else if age.is_none_or(|age| age > PROOF_LIMIT) {
            (
                Status::Deaf,
                Some("the database has not answered the listener lately".to_owned()),
            )
        } else {
            (Status::Ready, None)
        };
        Readiness {
            status,
            reason,
            last_look_ms: age.map(|age| age.as_millis() as u64),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readiness {
    /// Whether all is well.
    pub fn is_ready(&self) -> bool {
        self.status == Status::Ready
    }
}
