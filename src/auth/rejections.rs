//! Who was turned away, and why: counted, and told of without filling the log.

use std::{fmt, time::Instant};

use prometheus_client::metrics::{counter::Counter, family::Family};
use tracing::{info, warn};

use crate::{auth::client_addr::Client, runtime::log_throttle::Rarely};

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
    /// It could not be found out in time who it is.
    Unavailable,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Connections,
        Self::User,
        Self::Address,
        Self::Rate,
        Self::Sockets,
        Self::Origin,
        Self::Identity,
        Self::Unavailable,
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
            Self::Unavailable => "unavailable",
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
            Self::Unavailable => {
                "the database or the key set does not answer in time, or too many requests wait \
                 for it"
            }
        })
    }
}

/// The label of a counter.
type Label = [(&'static str, &'static str); 1];

/// Counts refusals, and tells of them now and then.
#[derive(Debug)]
pub struct Refusals {
    counted: Family<Label, Counter>,
    told: [Rarely; Reason::ALL.len()],
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
            told: Default::default(),
        }
    }
}

impl Refusals {
    /// How many were turned away for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.counted.get_or_create(&label(reason)).get()
    }

    /// The counters, by reason.
    pub fn counted(&self) -> Family<Label, Counter> {
        self.counted.clone()
    }

    /// Somebody was turned away, and came from there.
    pub fn count(&self, reason: Reason, client: Client) {
        self.counted.get_or_create(&label(reason)).inc();
        // In the order in which they are declared, which is that of `ALL`.
        let Some(count) = self.told[reason as usize].count(Instant::now()) else {
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
}

fn label(reason: Reason) -> Label {
    [("reason", reason.name())]
}
