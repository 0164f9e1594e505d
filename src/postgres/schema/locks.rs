//! Applies migrations that need an exclusive lock on a table while applications are
//! writing.

use std::{fmt, time::Duration};

use refinery::{Runner, Target};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, error::SqlState, types::Type};
use tracing::{info, warn};

use super::{SchemaError, SchemaName, concurrent_index, runner};

/// When a session waits for a table's lock, all writers that come later queue behind it.
/// So a migration stops waiting after [`LOCK_TIMEOUT`], and tries again after
/// [`LOCK_PAUSE`]. The timeout is longer than `deadlock_timeout` (1 s by default), after
/// which Postgres cancels an autovacuum that is in the way.
pub(in crate::postgres) const LOCK_TIMEOUT: &str = "2s";
pub(in crate::postgres) const LOCK_PAUSE: Duration = Duration::from_secs(2);

/// Applies the missing migrations without making writers wait.
///
/// # Errors
///
/// [`SchemaError`], also if other sessions hold locks for longer than `lock_limit`.
pub(super) async fn apply(
    client: &mut Client,
    schema: &SchemaName,
    lock_limit: Duration,
) -> Result<(), SchemaError> {
    let give_up = Instant::now() + lock_limit;
    let index = concurrent_index::TOPICS;
    let before = runner(schema)?.set_target(Target::Version(index.after));
    run(&before, client, schema, lock_limit, give_up).await?;
    let left = give_up.saturating_duration_since(Instant::now());
    match index.build(client, schema, left).await {
        Err(error) if is_about_a_lock(&error) => {
            return Err(SchemaError::InUse {
                schema: schema.clone(),
                lock_limit,
                holder: LockHolder::find(client, schema).await?,
            });
        }
        built => built?,
    }
    run(&runner(schema)?, client, schema, lock_limit, give_up).await?;
    client.batch_execute("reset lock_timeout").await?;
    Ok(())
}

/// Applies the missing migrations up to the runner's target.
///
/// # Errors
///
/// [`SchemaError`], also if other sessions hold locks until it is time to `give_up`.
async fn run(
    runner: &Runner,
    client: &mut Client,
    schema: &SchemaName,
    lock_limit: Duration,
    give_up: Instant,
) -> Result<(), SchemaError> {
    let timeout = format!("set lock_timeout = '{LOCK_TIMEOUT}'");
    client.batch_execute(&timeout).await?;
    let mut waits = false;
    loop {
        let outcome = runner.run_async(client).await;
        let report = match &outcome {
            Ok(report) => Some(report),
            Err(error) => error.report(),
        };
        for applied in report.map_or(&[][..], |report| report.applied_migrations()) {
            info!(schema = %schema, migration = %applied, "applied {applied} to the schema {schema}");
        }
        match outcome {
            Ok(_) => return Ok(()),
            Err(error) if !waited_for_a_lock(&error) => return Err(error.into()),
            Err(_) => {}
        }
        let holder = LockHolder::find(client, schema).await?;
        if Instant::now() + LOCK_PAUSE > give_up {
            return Err(SchemaError::InUse {
                schema: schema.clone(),
                lock_limit,
                holder,
            });
        }
        if !waits {
            warn!(
                schema = %schema,
                "a migration needs exclusive access to a table, and {holder}: writers continue, \
                 and the migration is retried for {} s",
                lock_limit.as_secs()
            );
            waits = true;
        }
        sleep(LOCK_PAUSE).await;
    }
}

/// The session whose transaction has held a lock on one of our tables for the longest
/// time.
#[derive(Debug)]
pub struct LockHolder {
    who: Option<String>,
    pid: Option<i32>,
    seconds: Option<i64>,
}

impl LockHolder {
    /// The session's process id, if it may be terminated.
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }

    async fn find(client: &Client, schema: &SchemaName) -> Result<Self, tokio_postgres::Error> {
        let holder = include_str!("../../../sql/lock_holder.sql");
        let schema = [(&schema.name() as _, Type::TEXT)];
        let rows = client.query_typed(holder, &schema).await?;
        Ok(match rows.first() {
            Some(row) => Self {
                who: row.try_get("who")?,
                pid: row.try_get("pid")?,
                seconds: row.try_get("seconds")?,
            },
            None => Self {
                who: None,
                pid: None,
                seconds: None,
            },
        })
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.who, self.seconds) {
            (Some(who), Some(seconds)) => {
                let open = Duration::from_secs(seconds.unsigned_abs());
                let open = humantime::format_duration(open);
                write!(
                    f,
                    "{who} uses it in a transaction that has been open for {open}"
                )
            }
            (Some(who), None) => write!(f, "{who} uses it"),
            (None, _) => write!(
                f,
                "the session that uses it is unknown (it has ended, or is a prepared transaction)"
            ),
        }
    }
}

/// Whether a migration failed because another session held a lock.
fn waited_for_a_lock(error: &refinery::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref() {
            return is_about_a_lock(error);
        }
        source = cause.source();
    }
    false
}

/// Whether a statement waited for a lock for too long.
fn is_about_a_lock(error: &tokio_postgres::Error) -> bool {
    let code = error.code();
    code == Some(&SqlState::LOCK_NOT_AVAILABLE) || code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
}
