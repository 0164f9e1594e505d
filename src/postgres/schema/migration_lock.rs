//! The advisory lock around migrations. Any role that can connect can take it, so only
//! schema changes may depend on it.

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, types::Type};

use super::{SchemaError, SchemaName, name::literal};

/// The lock is polled, because a waiting session would hold a snapshot that blocks
/// `create index concurrently`.
const POLL: Duration = Duration::from_millis(50);

/// Takes the lock until the session ends. May reset the session's role to the login role,
/// which may see more of other sessions than the owner.
///
/// # Errors
///
/// [`SchemaError::Locked`], if another session holds the lock for longer than `limit`.
pub(super) async fn take(
    client: &Client,
    schema: &SchemaName,
    limit: Duration,
) -> Result<(), SchemaError> {
    let give_up = Instant::now() + limit;
    let key = format!("tidings migrate {schema}");
    loop {
        let query = include_str!("../../../sql/migration_lock.sql");
        let row = client.query_typed_one(query, &[(&key, Type::TEXT)]).await?;
        if row.try_get("taken")? {
            return Ok(());
        }
        if Instant::now() > give_up {
            client.batch_execute("set role none").await?;
            let row = client.query_typed_one(query, &[(&key, Type::TEXT)]).await?;
            if row.try_get("taken")? {
                return Ok(());
            }
            return Err(SchemaError::Locked {
                schema: schema.clone(),
                waited: limit,
                holder: Box::new(MigrationLockHolder {
                    pid: row.try_get("pid")?,
                    role: row.try_get("role")?,
                    application: row.try_get("application")?,
                    since: row.try_get("since")?,
                    prepared: row.try_get("prepared")?,
                }),
            });
        }
        sleep(POLL).await;
    }
}

/// The holder of the lock around migrations, as far as this role may see it.
#[derive(Debug)]
pub struct MigrationLockHolder {
    pid: Option<i32>,
    role: Option<String>,
    application: Option<String>,
    /// When its transaction began, or its session if there is none.
    since: Option<String>,
    /// The prepared transaction that holds the lock.
    prepared: Option<String>,
}

impl MigrationLockHolder {
    /// The statement that ends the holder, in parentheses.
    pub(super) fn fix(&self) -> String {
        match (self.pid, &self.prepared) {
            (Some(pid), _) => format!(" (select pg_terminate_backend({pid});)"),
            (None, Some(gid)) => format!(" (rollback prepared {};)", literal(gid)),
            (None, None) => String::new(),
        }
    }
}

impl fmt::Display for MigrationLockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.prepared) {
            (Some(pid), _) => write!(f, "It is held by backend {pid}")?,
            (None, Some(gid)) => write!(f, "It is held by the prepared transaction {gid}")?,
            (None, None) => return write!(f, "Its holder has just ended"),
        }
        if let Some(role) = &self.role {
            write!(f, " of the role {role}")?;
        }
        if let Some(application) = &self.application {
            write!(f, " (application_name {application})")?;
        }
        match &self.since {
            Some(since) => write!(f, ", since {since} or later"),
            None => write!(
                f,
                ", and this role may not see since when (grant pg_read_all_stats to it)"
            ),
        }
    }
}
