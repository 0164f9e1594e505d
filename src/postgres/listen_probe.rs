//! Checks that a URL leads to a primary through sessions of our own, which LISTEN and
//! migrations need.
//!
//! A pooler that lends sessions per transaction accepts LISTEN without an error, but
//! notifications never arrive.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};
use tokio_postgres::AsyncMessage;

use crate::postgres::connect::{self, ConnectError, DatabaseUrl};

/// How long a notification may take. Normally it takes milliseconds.
const HEARD_LIMIT: Duration = Duration::from_secs(5);

/// Why the listener can't use a URL.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Postgres reported an error, or the connection broke.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// A hot standby accepts neither LISTEN nor writes.
    #[error(
        "{0} is a standby, which supports neither LISTEN nor writes: point DATABASE_URL at the \
         primary, or list all hosts in it (host=a,b) so that the primary is found"
    )]
    Standby(String),
    /// A notification sent in one session didn't arrive in another.
    #[error(
        "notifications don't arrive through {0}: it leads to a pooler in transaction mode \
         (PgBouncer's pool_mode=transaction). Set TIDINGS_DIRECT_DATABASE_URL to Postgres itself, \
         for the listener and migrations; DATABASE_URL can stay unchanged"
    )]
    Unheard(String),
}

impl DirectError {
    /// Whether retrying may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_passing(),
            Self::Postgres(error) => error.is_closed(),
            Self::Standby(_) | Self::Unheard(_) => false,
        }
    }
}

/// Sends NOTIFY in one session and listens in another.
///
/// # Errors
///
/// [`DirectError`], within half a minute.
pub async fn prove(url: &DatabaseUrl) -> Result<(), DirectError> {
    let channel = format!("tidings_proof_{:016x}", rand::random::<u64>());
    let heard = Arc::new(Notify::new());
    let (expected, rung) = (channel.clone(), Arc::clone(&heard));
    let on_message = move |message| match message {
        AsyncMessage::Notification(heard) if heard.channel() == expected => rung.notify_one(),
        _ => {}
    };
    let (listening, _driver) = connect::connect(url, on_message).await?;
    if connect::is_standby(&listening).await? {
        return Err(DirectError::Standby(url.to_string()));
    }
    listening
        .batch_execute(&format!("listen {channel}"))
        .await?;
    let (ringing, _driver) = connect::connect(url, |_| ()).await?;
    // Not pg_notify(): EXECUTE on it may have been revoked from the role.
    match ringing.batch_execute(&format!("notify {channel}")).await {
        // While the notification queue is full, nothing can be checked. The bridge
        // delivers without notifications; the listener logs a warning.
        Err(error) if connect::is_queue_full(&error) => return Ok(()),
        notified => notified?,
    }
    timeout(HEARD_LIMIT, heard.notified())
        .await
        .map_err(|_| DirectError::Unheard(url.to_string()))
}
