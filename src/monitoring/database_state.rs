//! State of the database as opposed to that of one bridge: the pending rows and the
//! connected bridges. Shown by `tidings status` and the operator's page.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::{Error, Row, error::SqlState};

use crate::{
    postgres::{connect::Borrowed, schema::SchemaName},
    runtime::error_chain::ErrorChain,
};

/// Time limit for each query. Its duration grows with the numbers of users
/// (`V12__seen_from_sql.sql`) and of rows for topics; while the per-user floors are void,
/// with the number of rows that are kept.
const LIMIT: Duration = Duration::from_secs(5);

/// The state of the database.
#[derive(Debug, Serialize)]
pub struct DatabaseState {
    pub pending: Found<Pending>,
    /// The connected bridges, in the order in which they started.
    pub bridges: Found<Vec<Bridge>>,
    pub adopted: Found<Vec<Adopted>>,
    pub topics: Found<Topics>,
}

/// A value, or why it is not known.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Found<T> {
    So(T),
    Unknown { unknown: String },
}

impl<T> Found<T> {
    fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown {
            unknown: reason.into(),
        }
    }
}

impl<T> From<Result<T, Error>> for Found<T> {
    fn from(answer: Result<T, Error>) -> Self {
        match answer {
            Ok(found) => Self::So(found),
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
                Self::unknown(format!("the query takes longer than {} s", LIMIT.as_secs()))
            }
            Err(error) => Self::unknown(ErrorChain(&error).to_string()),
        }
    }
}

/// The rows that are neither sent nor expired.
#[derive(Debug, Serialize)]
pub struct Pending {
    pub rows: i64,
    /// Users that the rows are for.
    pub users: i64,
    /// How long the oldest row has waited; `None` if there is none.
    pub oldest_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct Bridge {
    /// Version of the program.
    pub version: String,
    /// Address where it serves streams.
    pub address: String,
    /// Address that it connects from; `None` for a Unix socket.
    pub client_address: Option<String>,
    /// `awake`, `asleep`, `feeding` or `following`.
    pub state: String,
    /// Open streams.
    pub connections: i64,
    /// Time since it started.
    pub up_seconds: f64,
    /// Time since its last report.
    pub silent_seconds: f64,
}

/// A table of an application's whose rows are copied (`tidings adopt`).
#[derive(Debug, Serialize)]
pub struct Adopted {
    pub table: String,
    /// Whether bridges mark its rows.
    pub marks: bool,
    /// Time since a bridge last looked for lost marks; `None` if none has.
    pub swept_seconds: Option<f64>,
}

/// All topics that have subscribers or rows.
#[derive(Debug, Serialize)]
pub struct Topics {
    pub topics: i64,
    /// Rows of `topic_subscriptions`.
    pub subscriptions: i64,
    /// Notifications that are kept.
    pub rows: i64,
    /// Time since the newest of them was created; `None` if there is none.
    pub newest_seconds: Option<f64>,
}

impl DatabaseState {
    /// Nothing is known, for this reason.
    pub fn unknown(reason: &str) -> Self {
        Self {
            pending: Found::unknown(reason),
            bridges: Found::unknown(reason),
            adopted: Found::unknown(reason),
            topics: Found::unknown(reason),
        }
    }

    /// Queries the database.
    pub async fn take(client: &Borrowed, schema: &SchemaName) -> Self {
        let pending = schema.fill(include_str!("../../sql/pending.sql"));
        let bridges = schema.fill(include_str!("../../sql/bridges.sql"));
        let adopted = schema.fill(include_str!("../../sql/adopted_status.sql"));
        let topics = schema.fill(include_str!("../../sql/topics_status.sql"));
        Self {
            pending: waiting(client, &pending).await.into(),
            bridges: serving(client, &bridges).await.into(),
            adopted: copied(client, &adopted).await.into(),
            topics: followed(client, &topics).await.into(),
        }
    }
}

async fn waiting(client: &Borrowed, query: &str) -> Result<Pending, Error> {
    let row = client.query_one_within(LIMIT, query).await?;
    Ok(Pending {
        rows: row.try_get("pending")?,
        users: row.try_get("users")?,
        oldest_seconds: row.try_get("age")?,
    })
}

async fn serving(client: &Borrowed, query: &str) -> Result<Vec<Bridge>, Error> {
    let rows = client.query_within(LIMIT, query).await?;
    rows.iter().map(bridge).collect()
}

async fn copied(client: &Borrowed, query: &str) -> Result<Vec<Adopted>, Error> {
    let rows = client.query_within(LIMIT, query).await?;
    let adopted = rows.iter().map(|row| {
        Ok(Adopted {
            table: row.try_get("table")?,
            marks: row.try_get("marks")?,
            swept_seconds: row.try_get("swept")?,
        })
    });
    adopted.collect()
}

async fn followed(client: &Borrowed, query: &str) -> Result<Topics, Error> {
    let row = client.query_one_within(LIMIT, query).await?;
    Ok(Topics {
        topics: row.try_get("topics")?,
        subscriptions: row.try_get("subscriptions")?,
        rows: row.try_get("rows")?,
        newest_seconds: row.try_get("newest")?,
    })
}

fn bridge(row: &Row) -> Result<Bridge, Error> {
    Ok(Bridge {
        version: row.try_get("version")?,
        address: row.try_get("address")?,
        client_address: row.try_get("client_address")?,
        state: row.try_get("state")?,
        connections: row.try_get("connections")?,
        up_seconds: row.try_get("up")?,
        silent_seconds: row.try_get("silent")?,
    })
}
