//! Tickets: values made in SQL that open a user's streams for a while.
//!
//! The database keeps only their hashes. `create_stream_ticket` makes them, and
//! a row that is removed ends the streams that it opened.

use std::{
    sync::Arc,
    time::{self, Duration},
};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::{sync::Semaphore, time::Instant};
use tokio_postgres::types::Type;
use tracing::warn;

use crate::{
    hub::Hub,
    identity::{Identity, TicketHash, Unidentified},
    notification::UserId,
    pool::{Pool, QueryError},
    rarely::Rarely,
    reader,
    sql::Sql,
};

/// A ticket is 64 hexadecimal digits: whatever else is shown costs no query.
const DIGITS: usize = 64;

/// How long it may take to look one up: a browser waits for its first byte.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// How many are looked up at once: guessed tickets of strangers must leave the
/// pool to those who read pages.
const LOOKS_AT_ONCE: usize = 2;

/// Where tickets are looked up.
pub struct Tickets {
    hub: Arc<Hub>,
    pool: Pool,
    sql: Arc<Sql>,
    looks: Semaphore,
    failed: Rarely,
}

impl TicketHash {
    /// The hash of what could be a ticket.
    pub fn of(ticket: &str) -> Option<Self> {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if ticket.len() != DIGITS || !ticket.as_bytes().iter().all(is_digit) {
            return None;
        }
        Self::from_bytes(digest(&SHA256, ticket.as_bytes()).as_ref())
    }
}

impl Tickets {
    /// Looks them up with connections from `pool`.
    pub fn new(hub: Arc<Hub>, pool: Pool, sql: Arc<Sql>) -> Self {
        Self {
            hub,
            pool,
            sql,
            looks: Semaphore::new(LOOKS_AT_ONCE),
            failed: Rarely::default(),
        }
    }

    /// Whose a ticket is. It expires by the database's clock alone.
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub async fn verify(&self, ticket: &str) -> Result<Identity, Unidentified> {
        let hash = TicketHash::of(ticket).ok_or(Unidentified::Ticket)?;
        // The semaphore is never closed.
        let _look = self.looks.acquire().await;
        match self.find(hash).await {
            Ok(identity) => identity,
            Err(error) => {
                // Anybody can have one looked up.
                if let Some(count) = self.failed.count(time::Instant::now()) {
                    warn!(%error, count, "could not look up {count} tickets: {error}");
                }
                Err(Unidentified::Unavailable)
            }
        }
    }

    async fn find(&self, hash: TicketHash) -> Result<Result<Identity, Unidentified>, QueryError> {
        let parameters = [(&hash.0.as_slice() as _, Type::BYTEA)];
        let query = self.pool.query(LOOK_LIMIT, &self.sql.ticket, &parameters);
        let rows = query.await?;
        let row = reader::head(&rows);
        if reader::read_incarnation(row)? != self.hub.tail().history.incarnation {
            // An old primary may keep its sessions for ever, and knows nothing
            // of the tickets that were taken away since.
            self.pool.renew();
            return Ok(Err(Unidentified::Unavailable));
        }
        let user: Option<String> = row.try_get("user_id")?;
        let Some(user) = user.and_then(|user| UserId::parse(&user)) else {
            return Ok(Err(Unidentified::Ticket));
        };
        let seconds: f64 = row.try_get("seconds_left")?;
        let left = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Ok(Ok(Identity {
            expires: Some(Instant::now() + left),
            ticket: Some(hash),
            ..user.into()
        }))
    }
}
