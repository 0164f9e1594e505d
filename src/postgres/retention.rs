//! How long rows stay, and how they are removed: in batches, by the only database
//! function that can remove them (`V30__prune_topics.sql`).

use std::{str::FromStr, time::Duration};

use tokio::time::Instant;
use tokio_postgres::{Client, error::SqlState};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    postgres::{
        connect::{self, ConnectError, DatabaseUrl},
        prune_failure::PruneFailure,
        schema::SchemaName,
    },
    runtime::error_chain::ErrorChain,
};

/// The minimum time that rows stay after they were sent or, for topics, created; the
/// function rejects less. A client that returns later than this receives `tidings.gap`.
pub const LEAST: Duration = Duration::from_secs(60 * 60);

/// The maximum, a hundred years, so that dates stay within Postgres' range. That is for
/// ever: no row is as old.
pub const MOST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// If a crash loses a batch, it is simply repeated, so its commit need not wait for the
/// disk.
///
/// A batch takes a second, unless deleting a single row takes longer: a foreign key
/// without an index on its column makes each delete read the whole referencing table. Up
/// to a minute, that is slow but makes progress; with the limit of other queries, each
/// attempt would be rolled back.
const SESSION: &str = "set synchronous_commit = off; set statement_timeout = '1min'";

/// Counting the removable rows reads the whole table, however long that takes.
const NO_STATEMENT_TIMEOUT: &str = "set statement_timeout = 0";

/// How long rows of one kind stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// None of them is removed.
    Forever,
    /// They are removed after this time.
    For(Duration),
}

/// How long rows stay. Expired ones are removed an hour after they have expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retentions {
    /// Rows for users, from when they were sent.
    pub sent: Retention,
    /// Rows for topics, from when they were created: they are for many users, and that one
    /// of them was sent a row says nothing about the others.
    pub topics: Retention,
}

impl Retention {
    /// As the database's functions take it.
    fn seconds(self) -> f64 {
        match self {
            Self::Forever => MOST,
            Self::For(duration) => duration,
        }
        .as_secs_f64()
    }
}

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Forever),
            duration => at_least_an_hour(duration).map(Self::For),
        }
    }
}

/// Parses how long rows stay, such as `30d`.
///
/// # Errors
///
/// A message that says what is wrong with it.
pub fn at_least_an_hour(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (LEAST..=MOST).contains(&duration) {
        Ok(duration)
    } else {
        Err("rows must be kept for at least an hour and at most 100 years, such as 30d".to_owned())
    }
}

/// Why rows were not removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Postgres reported an error, or the connection broke.
    #[error(transparent)]
    Postgres(tokio_postgres::Error),
    /// This role may not remove rows.
    #[error(
        "{}: have the schema's owner run: grant execute on function \
         {}.tidings_prune_batch(interval, bigint, integer, interval) to the role of DATABASE_URL; or grant \
         that role tidings_bridge or tidings_owner",
        ErrorChain(.error), .schema.quoted()
    )]
    Right {
        schema: SchemaName,
        error: tokio_postgres::Error,
    },
    /// The function doesn't exist.
    #[error(
        "the schema {0} is too old for this, or Tidings is not installed in it: run `tidings \
         migrate`"
    )]
    TooOld(SchemaName),
    /// Another session didn't finish in time.
    #[error(
        "another session has been removing rows for {} s, or holds a lock that this needs; see \
         pg_stat_activity",
        .0.as_secs()
    )]
    Busy(Duration),
}

/// The result of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PruneBatch {
    /// Rows were removed.
    Removed { rows: u64, left: Left },
    /// Nothing was removed, because another session is removing rows.
    Busy,
}

/// Which rows remain to be examined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Left {
    /// None that is old enough.
    Nothing,
    /// Rows of a period of this length, up to the youngest that are old enough.
    Time(Duration),
}

/// How many rows could be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// Rows that were sent long enough ago.
    pub sent: u64,
    /// Rows for topics that were created long enough ago.
    pub topics: u64,
    /// Other rows, which have expired.
    pub expired: u64,
}

/// Which of several bridges removes rows automatically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneTurn {
    Ours,
    Another,
    /// This one, although a role that may not remove rows holds the lock. Contains a
    /// description of the holder.
    Obstructed(String),
}

/// When to retry rows that could not be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Immediately: the obstacle may have been removed.
    All,
    /// After an hour at first, later once a day.
    WhenDue,
}

/// A session that removes rows, starting with the oldest.
#[derive(Debug)]
pub struct Prune {
    client: Client,
    _driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
    schema: SchemaName,
    batch: String,
    retentions: Retentions,
    /// The id of the last row that was examined. `None` at the start, if rows that could
    /// not be removed must be retried.
    looked_to: Option<i64>,
}

impl Prune {
    /// Opens a session of its own, so that removing rows never takes a connection from
    /// streams and marks.
    pub async fn open(
        url: &DatabaseUrl,
        schema: &SchemaName,
        retentions: Retentions,
        retry: Retry,
    ) -> Result<Self, PruneError> {
        let (client, driver) = connect::connect(url, |_| ()).await?;
        let prune = Self {
            client,
            _driver: AbortOnDropHandle::new(driver),
            schema: schema.clone(),
            batch: schema.fill(include_str!("../../sql/prune_batch.sql")),
            retentions,
            looked_to: match retry {
                Retry::All => None,
                Retry::WhenDue => Some(0),
            },
        };
        let settled = connect::settle(&prune.client).await;
        settled.map_err(PruneError::Postgres)?;
        let hurried = prune.client.batch_execute(SESSION).await;
        hurried.map_err(PruneError::Postgres)?;
        Ok(prune)
    }

    /// Whether this is the bridge that removes rows automatically. If so, it remains that
    /// until the session ends.
    ///
    /// A role that may not remove rows can take the lock too; its lock is ignored.
    /// Batches exclude each other by a lock that only their function can take, so several
    /// bridges at once only read more than necessary.
    pub async fn take_turn(&self) -> Result<PruneTurn, PruneError> {
        self.try_turn().await.map_err(|error| self.explain(error))
    }

    async fn try_turn(&self) -> Result<PruneTurn, tokio_postgres::Error> {
        let query = include_str!("../../sql/prune_turn.sql");
        let table = self.schema.qualified("notifications");
        let row = self.client.query_one(query, &[&table]).await?;
        if row.try_get::<_, Option<bool>>("taken")? == Some(true) {
            return Ok(PruneTurn::Ours);
        }
        let strangers = include_str!("../../sql/lock_strangers.sql");
        for row in self.client.query(strangers, &[&self.schema.name()]).await? {
            if row.try_get::<_, &str>("lock")? == "prune" {
                return Ok(PruneTurn::Obstructed(row.try_get("what")?));
            }
        }
        Ok(PruneTurn::Another)
    }

    /// Removes one batch, in a transaction of its own. After the last batch it starts
    /// again with the oldest row.
    pub async fn batch(&mut self) -> Result<PruneBatch, PruneError> {
        let Retentions { sent, topics } = self.retentions;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&sent.seconds(), &self.looked_to, &topics.seconds()];
        let row = self.client.query_opt(&self.batch, &parameters).await;
        let Some(row) = row.map_err(|error| self.explain(error))? else {
            return Ok(PruneBatch::Busy);
        };
        let read = || {
            let rows: i64 = row.try_get("removed")?;
            let looked_to: Option<i64> = row.try_get("looked_to")?;
            let seconds: f64 = row.try_get("seconds_left")?;
            Ok((rows.unsigned_abs(), looked_to, seconds))
        };
        let (rows, looked_to, seconds) = read().map_err(PruneError::Postgres)?;
        self.looked_to = Some(looked_to.unwrap_or(0));
        let left = match looked_to {
            Some(_) => Left::Time(Duration::try_from_secs_f64(seconds).unwrap_or_default()),
            None => Left::Nothing,
        };
        Ok(PruneBatch::Removed { rows, left })
    }

    /// Rows that could not be removed, and the reasons; empty if this role may not read
    /// them.
    pub async fn failures(&self) -> Result<Vec<PruneFailure>, PruneError> {
        let failures = PruneFailure::read(&self.client, &self.schema).await;
        let failures = failures.map_err(PruneError::Postgres)?;
        Ok(failures.unwrap_or_default())
    }

    fn explain(&self, error: tokio_postgres::Error) -> PruneError {
        let schema = self.schema.clone();
        match error.code() {
            // The role may call the function, but the function doesn't see all rows.
            _ if connect::is_row_security(&error) => PruneError::Postgres(error),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => PruneError::Right { schema, error },
            Some(&SqlState::UNDEFINED_FUNCTION | &SqlState::INVALID_SCHEMA_NAME) => {
                PruneError::TooOld(schema)
            }
            _ => PruneError::Postgres(error),
        }
    }
}

/// Counts the rows that could be removed, without removing any.
pub async fn prunable(
    url: &DatabaseUrl,
    schema: &SchemaName,
    Retentions { sent, topics }: Retentions,
) -> Result<Prunable, PruneError> {
    let (client, _driver) = connect::connect_pinned(url).await?;
    let count = schema.fill(include_str!("../../sql/prunable.sql"));
    let counting = async {
        client.batch_execute(NO_STATEMENT_TIMEOUT).await?;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&sent.seconds(), &topics.seconds()];
        let row = client.query_one(&count, &parameters).await?;
        let rows = |kind| row.try_get(kind).map(i64::unsigned_abs);
        Ok(Prunable {
            sent: rows("sent")?,
            topics: rows("topics")?,
            expired: rows("expired")?,
        })
    };
    counting.await.map_err(PruneError::Postgres)
}

/// How long to rest after a batch, relative to its duration.
#[derive(Clone, Copy, Debug)]
pub struct PrunePace {
    /// The rest as a multiple of the batch's duration.
    pub rest: u32,
}

impl PrunePace {
    /// The rest after a batch that began at `begin` and has just ended.
    pub fn after(self, begin: Instant) -> Duration {
        begin.elapsed() * self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stay_for_an_hour_at_least_or_for_ever() {
        assert_eq!("off".parse(), Ok(Retention::Forever));
        assert_eq!("1h".parse(), Ok(Retention::For(LEAST)));
        let month = Duration::from_secs(30 * 24 * 60 * 60);
        assert_eq!("30d".parse(), Ok(Retention::For(month)));
        for refused in ["59m", "0s", "101y", "30", "", "on"] {
            assert!(refused.parse::<Retention>().is_err(), "{refused}");
        }
    }
}
