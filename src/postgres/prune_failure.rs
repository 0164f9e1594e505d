//! Rows that could not be removed, and the reasons (`V16__prune_failures.sql`).

use tokio_postgres::{error::SqlState, types::Type};

use crate::postgres::{connect::Queries, schema::SchemaName};

/// How many records are counted at most, in about 50 ms. Beyond this, the exact number
/// makes no difference.
const MOST_COUNTED: i64 = 100_000;

/// Rows that could not be removed for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneFailure {
    /// The violated constraint: `schema.table.constraint`.
    pub constraint: Option<String>,
    /// The error message for one of them, without control characters.
    pub reason: String,
    pub rows: u64,
}

impl PruneFailure {
    /// Reads all failures, the most frequent reason first. `None` if this role may not
    /// read them, or if the schema is too old to contain them.
    pub async fn read(
        client: &impl Queries,
        schema: &SchemaName,
    ) -> Result<Option<Vec<Self>>, tokio_postgres::Error> {
        let query = schema.fill(include_str!("../../sql/prune_failures.sql"));
        let rows = client
            .query_typed(&query, &[(&MOST_COUNTED, Type::INT8)])
            .await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                return match error.code() {
                    Some(
                        &SqlState::UNDEFINED_TABLE
                        | &SqlState::INSUFFICIENT_PRIVILEGE
                        | &SqlState::INVALID_SCHEMA_NAME,
                    ) => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let failure = |row: &tokio_postgres::Row| {
            let reason: String = row.try_get("reason")?;
            Ok(Self {
                constraint: row.try_get("constraint")?,
                // A trigger's message may contain anything.
                reason: reason.replace(char::is_control, " "),
                rows: row.try_get::<_, i64>("rows")?.unsigned_abs(),
            })
        };
        rows.iter().map(failure).collect::<Result<_, _>>().map(Some)
    }

    /// The number of rows for all reasons.
    pub fn total(failures: &[Self]) -> u64 {
        failures.iter().map(|failure| failure.rows).sum()
    }
}

/// A number of rows, in words: `1 row`.
pub fn rows(number: u64) -> String {
    match number {
        1 => "1 row".to_owned(),
        _ => format!("{number} rows"),
    }
}

/// The rows that could not be removed, in words; `None` if there are none.
pub fn complaint(failures: &[PruneFailure]) -> Option<String> {
    let first = failures.first()?;
    Some(format!(
        "{} could not be removed: {}; `tidings check` shows the cause and the fix",
        rows(PruneFailure::total(failures)),
        first.reason
    ))
}
