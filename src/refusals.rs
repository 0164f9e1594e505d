//! Who was turned away, and why: counted, and told of without filling the log.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::{counter::Counter, family::Family};
use tracing::{info, warn};

use crate::client::Client;

/// The log has at most one line in this time for each reason: how often a line
/// is written must not be a stranger's choice.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Why somebody was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// So many streams are open, in all.
    Connections,
    /// So many of one user.
    User,
    /// So many from one address.
    Address,
    /// One address asks too often.
    Rate,
    /// So many sockets are open, in all or from one address.
    Sockets,
    /// A page of somebody else.
    Origin,
    /// Nobody knows who it is.
    Identity,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::User,
        Self::Address,
        Self::Rate,
        Self::Sockets,
        Self::Origin,
        Self::Identity,
    ];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::User => "user",
            Self::Address => "address",
            Self::Rate => "rate",
            Self::Sockets => "sockets",
            Self::Origin => "origin",
            Self::Identity => "identity",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "TIDINGS_MAX_CONNECTIONS streams are open",
            Self::User => "their user has TIDINGS_MAX_CONNECTIONS_PER_USER streams",
            Self::Address => "their address has TIDINGS_MAX_CONNECTIONS_PER_ADDRESS streams",
            Self::Rate => "their address asks more often than TIDINGS_CONNECTION_RATE",
            Self::Sockets => {
                "more sockets are open than TIDINGS_MAX_CONNECTIONS or \
                              TIDINGS_MAX_CONNECTIONS_PER_ADDRESS has use for"
            }
            Self::Origin => "their page's origin is not in TIDINGS_CORS_ORIGINS",
            Self::Identity => "they did not prove who they are",
        })
    }
}

/// The label of a counter.
type Label = [(&'static str, &'static str); 1];

/// Counts refusals, and tells of them now and then.
#[derive(Debug)]
pub struct Refusals {
    counted: Family<Label, Counter>,
    untold: Mutex<HashMap<Reason, Untold>>,
}

/// What the log doesn't know yet.
#[derive(Debug)]
struct Untold {
    count: u64,
    told: Instant,
}

impl Default for Refusals {
    fn default() -> Self {
        let counted = Family::default();
        for reason in Reason::ALL {
            // So that it is there, as a zero, before the first.
            drop(counted.get_or_create(&label(reason)));
        }
        Self {
            counted,
            untold: Mutex::default(),
        }
    }
}

impl Refusals {
    /// The counters, by reason.
    pub fn counted(&self) -> Family<Label, Counter> {
        self.counted.clone()
    }

    /// Somebody was turned away, and came from there.
    pub fn count(&self, reason: Reason, client: Client) {
        self.counted.get_or_create(&label(reason)).inc();
        let Some(count) = self.to_tell(reason, Instant::now()) else {
            return;
        };
        let name = reason.name();
        match reason {
            // Tokens expire, and pages of others are none of the operator's
            // business.
            Reason::Origin | Reason::Identity => {
                info!(reason = name, count, %client, "turned away {count}, {client} at last: {reason}");
            }
            _ => {
                warn!(reason = name, count, %client, "turned away {count}, {client} at last: {reason}");
            }
        }
    }

    /// How many the log is to be told of now, if it is time.
    fn to_tell(&self, reason: Reason, now: Instant) -> Option<u64> {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        match untold.get_mut(&reason) {
            None => {
                untold.insert(
                    reason,
                    Untold {
                        count: 0,
                        told: now,
                    },
                );
                Some(1)
            }
            Some(untold) => {
                untold.count += 1;
                let is_time = now.saturating_duration_since(untold.told) >= TELL_EVERY;
                is_time.then(|| {
                    untold.told = now;
                    std::mem::take(&mut untold.count)
                })
            }
        }
    }
}

fn label(reason: Reason) -> Label {
    [("reason", reason.name())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_told_at_once_and_then_of_all_since_at_most_every_ten_seconds() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let tell = |seconds| refusals.to_tell(Reason::Rate, start + Duration::from_secs(seconds));
        assert_eq!(tell(0), Some(1));
        assert_eq!([tell(0), tell(1), tell(9)], [None; 3]);
        assert_eq!(tell(10), Some(4));
        assert_eq!(tell(19), None);
        assert_eq!(tell(60), Some(2));
        // Another reason is another matter.
        assert_eq!(refusals.to_tell(Reason::User, start), Some(1));
    }
}
