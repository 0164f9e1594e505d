//! What is so in the database and not in one bridge: what waits, and which bridges
//! there are. `tidings status` and the operator's page show it.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::{Error, Row, error::SqlState};

use crate::postgres::{
    connect::{Borrowed, describe},
    schema::SchemaName,
};

/// How long each answer may take. It follows the number of users
/// (`V12__seen_from_sql.sql`); while floors are void, what is kept.
const LIMIT: Duration = Duration::from_secs(5);

/// What was found.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// What waits to be delivered.
    pub pending: Found<Pending>,
    /// Those that are connected, in the order in which they started.
    pub bridges: Found<Vec<Bridge>>,
}

/// Or why it is not known.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Found<T> {
    /// It is known.
    So(T),
    /// It is not.
    Unknown {
        /// Why.
        unknown: String,
    },
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
                Self::unknown(format!("it takes longer than {} s", LIMIT.as_secs()))
            }
            Err(error) => Self::unknown(describe(&error)),
        }
    }
}

/// What is neither sent nor expired.
#[derive(Debug, Serialize)]
pub struct Pending {
    /// Rows.
    pub rows: i64,
    /// Whom they concern.
    pub users: i64,
    /// For how long the oldest has waited, if any does.
    pub oldest_seconds: Option<f64>,
}

/// A bridge that is connected.
#[derive(Debug, Serialize)]
pub struct Bridge {
    /// Of the program.
    pub version: String,
    /// Where it serves streams.
    pub address: String,
    /// Where it connects from, unless that is a Unix socket.
    pub client_address: Option<String>,
    /// `awake` or `asleep`.
    pub state: String,
    /// Streams that are open.
    pub connections: i64,
    /// For how long it has run.
    pub up_seconds: f64,
    /// How long ago it told so.
    pub silent_seconds: f64,
}

impl Survey {
    /// Nothing is known, for this reason.
    pub fn unknown(reason: &str) -> Self {
        Self {
            pending: Found::unknown(reason),
            bridges: Found::unknown(reason),
        }
    }

    /// Looks.
    pub async fn take(client: &Borrowed, schema: &SchemaName) -> Self {
        let pending = schema.fill(include_str!("../../sql/pending.sql"));
        let bridges = schema.fill(include_str!("../../sql/bridges.sql"));
        Self {
            pending: waiting(client, &pending).await.into(),
            bridges: serving(client, &bridges).await.into(),
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
