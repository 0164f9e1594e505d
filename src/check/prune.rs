//! What keeps old and expired rows from being removed, or makes removing them slow:
//! foreign keys, triggers and rules of the application.

use tokio_postgres::types::Type;

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::{Borrowed, Queries},
    prune_failure::PruneFailure,
    schema::{SchemaError, SchemaName},
};

/// Foreign keys, triggers and rules that take part in each delete, and rows that could
/// not be removed for other reasons.
pub(super) async fn obstacles(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let rows = client
        .query_typed(
            include_str!("../../sql/prune_obstacles.sql"),
            &[(&schema.name(), Type::TEXT)],
        )
        .await?;
    let mut failures = PruneFailure::read(client, schema)
        .await?
        .unwrap_or_default();
    let mut findings = Vec::new();
    for row in &rows {
        let text = |name: &str| row.try_get::<_, String>(name);
        let (name, table, target, fix) =
            (text("name")?, text("table")?, text("target")?, text("fix")?);
        let is_ours_alone = !row.try_get::<_, bool>("is_notifications")?;
        match row.try_get::<_, &str>("kind")? {
            "index" => findings.push(Finding::wrong(
                Subject::Prune,
                format!(
                    "the foreign key {name} of {table} refers to {target}, and {table} has no \
                     index on its columns"
                ),
                format!(
                    "an index on the columns of the foreign key: without it, Postgres reads all \
                     of {table} for each row removed from {target}"
                ),
                Fix::Sql(fix),
            )),
            "reference" => {
                let kept = take(&mut failures, |failure| {
                    failure.constraint.as_ref() == Some(&name_of(&table, &name))
                });
                let found = format!(
                    "the foreign key {name} of {table} keeps rows of {target} from being removed{}",
                    so_far(kept)
                );
                let expected = format!(
                    "a foreign key with `on delete cascade` or `on delete set null`: otherwise, \
                     old rows of {target} to which {table} refers are never removed"
                );
                findings.push(judged(kept > 0 || is_ours_alone, found, expected, fix));
            }
            kind => {
                // A trigger may raise any error, but what a constraint refused is not its
                // doing.
                let kept = if is_ours_alone {
                    0
                } else {
                    take(&mut failures, |failure| failure.constraint.is_none())
                };
                let function = row.try_get::<_, Option<String>>("function")?;
                let function = function.map_or_else(String::new, |name| format!(" ({name})"));
                let found = format!(
                    "the {kind} {name} on {table}{function} runs when a row is removed{}",
                    so_far(kept)
                );
                let expected = format!(
                    "nothing that keeps old rows of {target} from being removed: make sure that \
                     the {kind} raises no error and skips no row, or remove it"
                );
                findings.push(judged(kept > 0, found, expected, fix));
            }
        }
    }
    for failure in failures {
        findings.push(Finding::wrong(
            Subject::Prune,
            format!(
                "{} could not be removed when due: {}",
                crate::postgres::prune_failure::rows(failure.rows),
                failure.reason
            ),
            "rows that are removed when they are due",
            Fix::Advice(
                "remove the cause that the message names; then `tidings prune` retries these rows \
                 at once, and `serve` within a day"
                    .to_owned(),
            ),
        ));
    }
    Ok(findings)
}

/// The constraint's name as failures are recorded, without quotes.
fn name_of(table: &str, constraint: &str) -> String {
    format!("{table}.{constraint}").replace('"', "")
}

/// Takes out the failures that `is_explained` accepts, and returns the number of their
/// rows.
fn take(failures: &mut Vec<PruneFailure>, is_explained: impl Fn(&PruneFailure) -> bool) -> u64 {
    let mut rows = 0;
    failures.retain(|failure| {
        let explained = is_explained(failure);
        if explained {
            rows += failure.rows;
        }
        !explained
    });
    rows
}

fn so_far(rows: u64) -> String {
    match rows {
        0 => String::new(),
        rows => format!(
            ": {} could not be removed so far",
            crate::postgres::prune_failure::rows(rows)
        ),
    }
}

/// What has kept rows must be fixed; what might keep rows is a hint.
fn judged(is_wrong: bool, found: String, expected: String, fix: String) -> Finding {
    if is_wrong {
        Finding::wrong(Subject::Prune, found, expected, Fix::Sql(fix))
    } else {
        Finding::hint(Subject::Prune, found, expected, Fix::Sql(fix))
    }
}
