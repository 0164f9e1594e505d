//! Why a bridge doesn't start, or stops on its own.

use crate::{
    delivery::listener::ListenError,
    http::servers::ServersError,
    postgres::{
        listen_probe::DirectError, memberships::MembershipError, pool::QueryError,
        schema::SchemaError,
    },
    runtime::tasks::{Failed, Failure},
};

/// Why the bridge did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Direct(#[from] DirectError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Memberships(#[from] MembershipError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Pool(#[from] deadpool::managed::BuildError),
    #[error("DATABASE_URL")]
    Query(#[from] QueryError),
    #[error(
        "DATABASE_URL and TIDINGS_DIRECT_DATABASE_URL lead to different servers, or one of them \
         to a standby: the bridge must read rows from the same server on which it listens"
    )]
    TwoServers,
    #[error(transparent)]
    Servers(#[from] ServersError),
}

/// Why a running bridge stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A task can't continue, for example a server whose socket fails: its name and the
    /// reason.
    #[error("the {0} failed: {1}")]
    Failed(&'static str, String),
    /// A task ended on its own, which is a bug: its name.
    #[error("the {0} ended unexpectedly; please report this with the log")]
    Ended(&'static str),
}

impl From<Failed> for RunError {
    fn from(Failed { name, how }: Failed) -> Self {
        match how {
            Failure::Error(error) => Self::Failed(name, error),
            Failure::Returned | Failure::Panicked => Self::Ended(name),
        }
    }
}
