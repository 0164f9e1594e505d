//! Whether new rows of adopted tables are still copied, and can still be inserted.

use tokio_postgres::{Row, error::SqlState, types::Type};

use super::{
    bridges::is_out_of_sight,
    finding::{Finding, Fix, Subject},
};
use crate::{
    postgres::{
        adoption,
        connect::{Borrowed, Queries},
        schema::{SchemaError, SchemaName},
    },
    runtime::error_chain::ErrorChain,
};

const COPIES: &str = "new rows are copied into notifications when they are inserted, by a function \
                      with the privileges of the table's owner";
const RENAMED: &str = "tables keep the names that they were adopted with: refs begin with them, and \
                       rows are marked by them";
const INSERTS: &str = "the function that copies new rows works: otherwise no row can be inserted";
const MARKS: &str = "rows that were sent are marked in the table, by a function that belongs to \
                     its owner and that the owner of Tidings may call";

/// What is wrong with adopted tables, and what this role could not see.
pub(super) async fn tables(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<(Vec<Finding>, Option<String>), SchemaError> {
    let query = schema.fill(include_str!("../../sql/adopted.sql"));
    let parameters = [(&schema.name() as _, Type::TEXT)];
    let rows = match client.query_typed(&query, &parameters).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let unseen = "which tables were adopted: this role may not read tidings_adopted";
            return Ok((Vec::new(), Some(unseen.to_owned())));
        }
        // The schema is too old.
        Err(error) if is_out_of_sight(&error) => return Ok((Vec::new(), None)),
        rows => rows?,
    };
    let (mut findings, mut unseen) = (Vec::new(), Vec::new());
    for row in &rows {
        match examine(client, schema, row).await? {
            Examined::Sound => {}
            Examined::Broken(finding) => findings.push(finding),
            Examined::OutOfSight(table) => unseen.push(table),
        }
        let marks: Option<bool> = row.try_get("marks")?;
        if row.try_get("is_there")? && marks == Some(false) {
            let table: String = row.try_get("table")?;
            findings.push(Finding::wrong(
                Subject::Adopted,
                format!("rows of {table} that were sent can't be marked there"),
                MARKS,
                adopt_again(&table),
            ));
        }
    }
    let unseen = (!unseen.is_empty()).then(|| {
        let tables = unseen.join(", ");
        format!("whether rows can be copied from {tables}: this role may not read them")
    });
    Ok((findings, unseen))
}

enum Examined {
    Sound,
    Broken(Finding),
    /// This role may not see the table with this name.
    OutOfSight(String),
}

async fn examine(
    client: &Borrowed,
    schema: &SchemaName,
    row: &Row,
) -> Result<Examined, SchemaError> {
    let table: String = row.try_get("table")?;
    let broken = |found: String, expected: &str, fix: Fix| {
        let finding = Finding::wrong(Subject::Adopted, found, expected, fix);
        Ok(Examined::Broken(finding))
    };
    if !row.try_get::<_, bool>("is_there")? {
        let quoted = table.replace('\'', r"'\''");
        let remove = format!("tidings adopt --remove '{quoted}' --apply --schema '{schema}'");
        let name = row.try_get("name")?;
        if let Some(now) = adoption::copied_as(client, schema, name).await? {
            let found = format!("the adopted table {table} is now called {now}");
            let fix = format!(
                "repeat the `tidings adopt` with {now}, or end the copying with `tidings adopt \
                 --remove {now}`; then run: {remove}"
            );
            return broken(found, RENAMED, Fix::Advice(fix));
        }
        let found = format!("the adopted table {table} doesn't exist, or is no longer a table");
        return broken(found, COPIES, Fix::Command(remove));
    }
    let enable = || Fix::Sql(format!("alter table {table} enable trigger tidings_copy;"));
    match row.try_get::<_, Option<&str>>("fires")? {
        None => {
            let found = format!("the trigger tidings_copy on {table} is missing");
            return broken(found, COPIES, adopt_again(&table));
        }
        Some("D") => {
            let found = format!("the trigger tidings_copy on {table} is disabled");
            return broken(found, COPIES, enable());
        }
        Some("R") => {
            let found = format!("the trigger tidings_copy on {table} fires only in replica mode");
            return broken(found, COPIES, enable());
        }
        Some(_) => {}
    }
    let function: String = row.try_get("function")?;
    if row.try_get::<_, Option<&str>>("owner")?.is_none() {
        let found = format!(
            "the function {function}, which copies rows of {table}, doesn't run with the \
             privileges of the table's owner"
        );
        return broken(found, INSERTS, adopt_again(&table));
    }
    if !row.try_get::<_, bool>("may_insert")? {
        let owner: String = row.try_get("table_owner")?;
        let found = format!(
            "{owner}, who owns the adopted table {table}, may not insert notifications, so no row \
             can be inserted into the table"
        );
        let grant = adoption::grant(schema, &owner, row.try_get("has_group")?);
        return broken(found, INSERTS, Fix::Sql(grant));
    }
    let source: &str = row.try_get("source")?;
    let Some(query) = adoption::copied_rows(schema, &table, source) else {
        if source.contains("notifications") {
            // It was adapted by hand.
            return Ok(Examined::Sound);
        }
        let found =
            format!("the function {function} doesn't insert rows of {table} into notifications");
        return broken(found, COPIES, adopt_again(&table));
    };
    match client.analyse(query.as_str()).await {
        Ok(()) => Ok(Examined::Sound),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Ok(Examined::OutOfSight(table))
        }
        Err(error) if error.as_db_error().is_some() => {
            let found = format!(
                "no row can be inserted into {table}, because {function} fails: {}",
                ErrorChain(&error)
            );
            broken(found, INSERTS, adopt_again(&table))
        }
        Err(error) => Err(error.into()),
    }
}

fn adopt_again(table: &str) -> Fix {
    Fix::Advice(format!(
        "repeat the `tidings adopt` of {table}, or end the copying with `tidings adopt --remove`"
    ))
}
