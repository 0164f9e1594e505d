//! Counts rejected requests by reason, and logs them at a limited rate.

use std::{fmt, time::Instant};

use tracing::{debug, info, warn};

use crate::{
    auth::client_addr::Client,
    runtime::{
        log_throttle::LogThrottle,
        reason_counter::{Reason, ReasonCounter},
    },
};

/// Why a request or connection was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Too many streams are open in total.
    Connections,
    /// The user has too many streams open.
    User,
    /// Too many streams are open from the address.
    Address,
    /// The address exceeds its rate limit.
    Rate,
    /// Too many sockets are open, in total or from the address.
    Sockets,
    /// The request comes from a page of another origin.
    Origin,
    /// The credentials are missing or invalid.
    Identity,
    /// The user could not be identified in time.
    Unavailable,
}

impl RejectReason {
    /// In the order of declaration: the position is the discriminant.
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

    /// The reason's label in the metrics.
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

    /// What was rejected for this reason, for the log.
    fn rejected(self, count: u64) -> &'static str {
        match (self, count) {
            (Self::Sockets, 1) => "connection",
            (Self::Sockets, _) => "connections",
            (_, 1) => "request",
            (_, _) => "requests",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "TIDINGS_MAX_CONNECTIONS streams are open",
            Self::User => "the user has TIDINGS_MAX_CONNECTIONS_PER_USER streams open",
            Self::Address => "the address has TIDINGS_MAX_CONNECTIONS_PER_ADDRESS streams open",
            Self::Rate => "the address exceeds TIDINGS_CONNECTION_RATE",
            Self::Sockets => {
                "more sockets are open than TIDINGS_MAX_CONNECTIONS or \
                 TIDINGS_MAX_CONNECTIONS_PER_ADDRESS allows"
            }
            Self::Origin => "the page's origin is not in TIDINGS_CORS_ORIGINS",
            Self::Identity => "the credentials are missing or invalid",
            Self::Unavailable => {
                "the database or the key set did not respond in time, or too many requests were \
                 waiting for it"
            }
        })
    }
}

impl Reason for RejectReason {
    fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }

    fn name(self) -> &'static str {
        Self::name(self)
    }
}

/// Counts rejections, and logs them at a limited rate.
#[derive(Debug, Default)]
pub struct Rejections {
    pub counter: ReasonCounter<RejectReason>,
    throttles: [LogThrottle; RejectReason::ALL.len()],
}

impl Rejections {
    /// Counts a rejection of this client. At most one line per reason is logged in 10 s,
    /// with the number of rejections since the last one; at `debug`, each is.
    pub fn count(&self, reason: RejectReason, client: Client) {
        self.log(reason, client, None);
    }

    /// The same, and the line says what was wrong with the last of them.
    pub fn count_because(&self, reason: RejectReason, client: Client, cause: &dyn fmt::Display) {
        self.log(reason, client, Some(cause));
    }

    fn log(&self, reason: RejectReason, client: Client, cause: Option<&dyn fmt::Display>) {
        self.counter.count(reason);
        let name = reason.name();
        // The discriminants follow the order of `ALL`.
        let due = self.throttles[reason as usize].count(Instant::now());
        let cause = || cause.map_or(String::new(), |cause| format!(" ({cause})"));
        let Some(count) = due else {
            debug!(reason = name, %client, "rejected {client}: {reason}{}", cause());
            return;
        };
        let what = reason.rejected(count);
        match reason {
            // These are normal: tokens expire, and other sites' pages are not the
            // operator's concern.
            RejectReason::Origin | RejectReason::Identity => {
                info!(
                    reason = name, count, %client,
                    "rejected {count} {what}, most recently from {client}: {reason}{}",
                    cause()
                );
            }
            _ => {
                warn!(
                    reason = name, count, %client,
                    "rejected {count} {what}, most recently from {client}: {reason}{}",
                    cause()
                );
            }
        }
    }
}
