//! What keeps delivered rows from being marked, as far as the database shows it.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::{Borrowed, Queries},
    schema::{SchemaError, SchemaName},
};

/// A transaction that locks rows for longer than this delays marks and turns readiness
/// red.
const LOCKED_FOR: Duration = Duration::from_secs(10);

/// Transactions that have held row locks for longer than [`LOCKED_FOR`].
pub(super) async fn locks(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let rows = client
        .query_typed(
            include_str!("../../sql/row_locks.sql"),
            &[
                (&schema.name(), Type::TEXT),
                (&LOCKED_FOR.as_secs_f64(), Type::FLOAT8),
            ],
        )
        .await?;
    let mut findings = Vec::new();
    for row in &rows {
        let text = |name: &str| row.try_get::<_, String>(name);
        let (what, table, fix) = (text("what")?, text("table")?, text("fix")?);
        let age = row.try_get::<_, Option<f64>>("seconds")?;
        let expected = format!(
            "locks for less than {} s: locked rows are delivered but can't be marked as sent, so \
             they may be sent again",
            LOCKED_FOR.as_secs()
        );
        let for_long = age.map_or_else(String::new, |seconds| {
            let open = Duration::from_secs(seconds.max(0.0) as u64);
            format!(" for {}", humantime::format_duration(open))
        });
        findings.push(match (age, row.try_get("locks_rows")?) {
            (Some(_), true) => Finding::wrong(
                Subject::Marks,
                format!("{what} has locked rows of {table}{for_long}"),
                expected,
                Fix::Sql(fix),
            ),
            (None, true) => Finding::hint(
                Subject::Marks,
                format!("{what} has locked rows of {table}; this role may not see for how long"),
                expected,
                Fix::Sql(fix),
            ),
            (_, false) => Finding::hint(
                Subject::Marks,
                format!(
                    "{what} has been writing to {table}{for_long}; if it updates or deletes rows, \
                     it has locked them"
                ),
                expected,
                Fix::Sql(fix),
            ),
        });
    }
    Ok(findings)
}

/// Triggers and constraints of the application that take part in each mark.
pub(super) async fn obstacles(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let rows = client
        .query_typed(
            include_str!("../../sql/mark_obstacles.sql"),
            &[(&schema.name(), Type::TEXT)],
        )
        .await?;
    let mut findings = Vec::new();
    for row in &rows {
        let text = |name: &str| row.try_get::<_, String>(name);
        let (name, table, function) = (text("name")?, text("table")?, text("function")?);
        let (found, fix) = if row.try_get::<_, &str>("kind")? == "trigger" {
            (
                format!("the trigger {name} on {table} ({function}) fires when a row is marked"),
                format!(
                    "restrict it to the columns that it needs (`update of …`), or drop it: \
                     drop trigger {name} on {table};"
                ),
            )
        } else {
            (
                format!("the constraint {name} on {table} may reject marks: {function}"),
                format!(
                    "validate or drop it: alter table {table} validate constraint {name}; or \
                     alter table {table} drop constraint {name};"
                ),
            )
        };
        findings.push(Finding::hint(
            Subject::Marks,
            found,
            "nothing that rejects or delays an update of sent_at: the row is delivered but can't \
             be marked as sent, so it may be sent again",
            Fix::Advice(fix),
        ));
    }
    Ok(findings)
}
