//! How long rows stay, and how they are removed: a batch at a time, by the one
//! function of the database that can (`V10__prune.sql`).

use std::{str::FromStr, time::Duration};

use tokio::time::Instant;
use tokio_postgres::{Client, error::SqlState};
use tokio_util::task::AbortOnDropHandle;

use crate::postgres::{
    connect::{self, ConnectError, DatabaseUrl, describe},
    prune_failure::PruneFailure,
    schema::SchemaName,
};

/// Rows stay for so long at least after they were sent; the function refuses
/// less. Who returns later than that is told of a gap.
pub const LEAST: Duration = Duration::from_secs(60 * 60);

/// And for so long at most, so that dates stay within what Postgres knows: a
/// hundred years.
pub const MOST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// What a batch writes is written again if it is lost, so its commit need not
/// wait for the disk.
///
/// A batch takes a second, unless the delete of a single row takes longer: a foreign
/// key whose column has no index makes each one read the whole referencing table. Up
/// to a minute of that is slow and makes progress; with the limit of other queries
/// each try would be rolled back.
const SESSION: &str = "set synchronous_commit = off; set statement_timeout = '1min'";

/// To count what could be removed the whole table is read, which takes what it
/// takes.
const PATIENT: &str = "set statement_timeout = 0";

/// How long rows stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Until somebody else removes them.
    Forever,
    /// For so long after they were sent.
    SentFor(Duration),
}

impl FromStr for Retention {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Forever),
            duration => sent_for(duration).map(Self::SentFor),
        }
    }
}

/// A duration that rows may stay after they were sent: `30d`.
///
/// # Errors
///
/// What is wrong with it.
pub fn sent_for(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (LEAST..=MOST).contains(&duration) {
        Ok(duration)
    } else {
        Err(
            "rows stay for an hour at least after they were sent, and for 100 years at most: 30d"
                .to_owned(),
        )
    }
}

/// Why rows were not removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// Postgres refused.
    #[error("{}", describe(.0))]
    Postgres(tokio_postgres::Error),
    /// This role may not.
    #[error(
        "{}: let the owner of the schema run: grant execute on function \
         {}.tidings_prune_batch(interval, bigint, integer) to the role of DATABASE_URL; or grant \
         that role tidings_bridge or tidings_owner",
        describe(.error), .schema.quoted()
    )]
    Right {
        /// Where.
        schema: SchemaName,
        /// What Postgres said.
        error: tokio_postgres::Error,
    },
    /// There is no such function.
    #[error("the schema {0} is too old for this, or holds no Tidings: run `tidings migrate`")]
    TooOld(SchemaName),
    /// It can't be waited for.
    #[error(
        "somebody else has been removing rows for {} s, or holds a lock on what that needs; see \
         pg_stat_activity",
        .0.as_secs()
    )]
    Busy(Duration),
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Batch {
    /// So many rows were removed.
    Removed {
        /// How many.
        rows: u64,
        /// What is to be looked at still.
        left: Left,
    },
    /// Nothing: somebody else is removing rows just now.
    Busy,
}

/// What is to be looked at still.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Left {
    /// Nothing that is old enough.
    Nothing,
    /// Rows of a time that begins so long before the youngest that are old enough.
    Time(Duration),
}

/// How many rows could be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prunable {
    /// They were sent long ago.
    pub sent: u64,
    /// Others, which have expired.
    pub expired: u64,
}

/// Which of several bridges removes rows by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// This one.
    Ours,
    /// Another one.
    Another,
    /// This one, although somebody else holds the lock who may not remove rows: who.
    Obstructed(String),
}

/// When rows are tried again that could not be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// At once: somebody may have removed what kept them.
    All,
    /// After an hour at first, and once a day later.
    WhenDue,
}

/// A session that removes rows, from the oldest on.
#[derive(Debug)]
pub struct Prune {
    client: Client,
    _driver: AbortOnDropHandle<Option<tokio_postgres::Error>>,
    schema: SchemaName,
    batch: String,
    sent_for: Duration,
    /// The last row that was looked at; `None` before all, if rows that could not be
    /// removed are to be tried again.
    looked_to: Option<i64>,
}

impl Prune {
    /// In a session of its own, so that it never takes a connection from streams
    /// and marks.
    ///
    /// # Errors
    ///
    /// [`PruneError`].
    pub async fn open(
        url: &DatabaseUrl,
        schema: &SchemaName,
        sent_for: Duration,
        retry: Retry,
    ) -> Result<Self, PruneError> {
        let (client, driver) = connect::connect(url, |_| ()).await?;
        let prune = Self {
            client,
            _driver: AbortOnDropHandle::new(driver),
            schema: schema.clone(),
            batch: schema.fill(include_str!("../../sql/prune_batch.sql")),
            sent_for,
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

    /// Whether this is the one bridge that removes rows by itself, from now on
    /// until the session ends.
    ///
    /// A role that may not remove rows can hold the lock and doesn't count: batches
    /// exclude each other by a lock that only their function can take, so that several
    /// bridges at once only read more than they would have to.
    ///
    /// # Errors
    ///
    /// [`PruneError`].
    pub async fn take_turn(&self) -> Result<Turn, PruneError> {
        self.try_turn().await.map_err(|error| self.explain(error))
    }

    async fn try_turn(&self) -> Result<Turn, tokio_postgres::Error> {
        let query = include_str!("../../sql/prune_turn.sql");
        let table = self.schema.qualified("notifications");
        let row = self.client.query_one(query, &[&table]).await?;
        if row.try_get::<_, Option<bool>>("taken")? == Some(true) {
            return Ok(Turn::Ours);
        }
        let strangers = include_str!("../../sql/lock_strangers.sql");
        for row in self.client.query(strangers, &[&self.schema.name()]).await? {
            if row.try_get::<_, &str>("lock")? == "prune" {
                return Ok(Turn::Obstructed(row.try_get("what")?));
            }
        }
        Ok(Turn::Another)
    }

    /// Removes one batch, in a transaction of its own. After the last one it
    /// begins again at the oldest row.
    ///
    /// # Errors
    ///
    /// [`PruneError`].
    pub async fn batch(&mut self) -> Result<Batch, PruneError> {
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&self.sent_for.as_secs_f64(), &self.looked_to];
        let row = self.client.query_opt(&self.batch, &parameters).await;
        let Some(row) = row.map_err(|error| self.explain(error))? else {
            return Ok(Batch::Busy);
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
        Ok(Batch::Removed { rows, left })
    }

    /// Which rows could not be removed, and why, as far as this role may read it.
    ///
    /// # Errors
    ///
    /// [`PruneError`].
    pub async fn failures(&self) -> Result<Vec<PruneFailure>, PruneError> {
        let failures = PruneFailure::read(&self.client, &self.schema).await;
        let failures = failures.map_err(PruneError::Postgres)?;
        Ok(failures.unwrap_or_default())
    }

    fn explain(&self, error: tokio_postgres::Error) -> PruneError {
        let schema = self.schema.clone();
        match error.code() {
            // It has the right to call it, and the function doesn't see all rows.
            _ if connect::is_row_security(&error) => PruneError::Postgres(error),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => PruneError::Right { schema, error },
            Some(&SqlState::UNDEFINED_FUNCTION | &SqlState::INVALID_SCHEMA_NAME) => {
                PruneError::TooOld(schema)
            }
            _ => PruneError::Postgres(error),
        }
    }
}

/// Counts what could be removed, and removes nothing.
///
/// # Errors
///
/// [`PruneError`].
pub async fn prunable(
    url: &DatabaseUrl,
    schema: &SchemaName,
    sent_for: Duration,
) -> Result<Prunable, PruneError> {
    let (client, _driver) = connect::connect_pinned(url).await?;
    let count = schema.fill(include_str!("../../sql/prunable.sql"));
    let counting = async {
        client.batch_execute(PATIENT).await?;
        let row = client.query_one(&count, &[&sent_for.as_secs_f64()]).await?;
        let (sent, expired): (i64, i64) = (row.try_get("sent")?, row.try_get("expired")?);
        Ok(Prunable {
            sent: sent.unsigned_abs(),
            expired: expired.unsigned_abs(),
        })
    };
    counting.await.map_err(PruneError::Postgres)
}

/// How long a batch took, and how long to rest after it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many times as long as the batch took.
    pub rest: u32,
}

impl Pace {
    /// The rest after what began then.
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
        assert_eq!("1h".parse(), Ok(Retention::SentFor(LEAST)));
        let month = Duration::from_secs(30 * 24 * 60 * 60);
        assert_eq!("30d".parse(), Ok(Retention::SentFor(month)));
        for refused in ["59m", "0s", "101y", "30", "", "on"] {
            assert!(refused.parse::<Retention>().is_err(), "{refused}");
        }
    }
}
