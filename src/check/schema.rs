//! Whether this bridge can use the schema and its server.

use tokio_postgres::{error::SqlState, types::Type};

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::{Borrowed, Queries},
    schema::{self, Fit, SchemaError, SchemaName},
};

pub(super) async fn misfit(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Option<Finding>, SchemaError> {
    match schema::check_server(client).await {
        Ok(()) => {}
        Err(error @ (SchemaError::Server(_) | SchemaError::Encoding(_))) => {
            return Ok(Some(Finding::wrong(
                Subject::Schema,
                error.to_string(),
                "PostgreSQL 13 or later, and a database in UTF8",
                Fix::Advice("use such a server and database".to_owned()),
            )));
        }
        // `path` reports this.
        Err(SchemaError::Standby) => {}
        Err(error) => return Err(error),
    }
    let needed = schema::version();
    let fit = match schema::fit(client, schema).await {
        // `rights` reports this.
        Err(SchemaError::Postgres(error))
            if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            return Ok(None);
        }
        fit => fit?,
    };
    let command = |text: &str| Fix::Command(format!("{text} --schema '{schema}'"));
    match schema::refuse_incomplete(client, schema, fit).await {
        Err(error @ SchemaError::Incomplete { .. }) => {
            return Ok(Some(incomplete(error)));
        }
        outcome => outcome?,
    }
    let (found, fix) = match fit {
        Fit::Serves => return Ok(None),
        Fit::TooOld { found: None } => (
            format!("Tidings is not installed in the schema {schema}"),
            command("tidings migrate"),
        ),
        Fit::TooOld { found: Some(found) } => (
            format!("the schema {schema} is too old: version {found}"),
            command("tidings migrate"),
        ),
        Fit::TooNew { found } => (
            format!(
                "the schema {schema} is too new: version {found} has removed something that this \
                 bridge needs"
            ),
            Fix::Advice("run the newer tidings, or restore the database".to_owned()),
        ),
    };
    Ok(Some(Finding::wrong(
        Subject::Schema,
        found,
        format!(
            "version {needed}, which belongs to this tidings, or a newer one that is \
             compatible with it"
        ),
        fix,
    )))
}

/// An object of Tidings is missing, or belongs to a role that could change it at will.
fn incomplete(error: SchemaError) -> Finding {
    let fix = match &error {
        SchemaError::Incomplete { missing, .. } => missing.fix(),
        _ => None,
    };
    let fix = match fix {
        Some(fix) => Fix::Sql(fix.to_owned()),
        None => Fix::Advice("restore the whole schema from one backup".to_owned()),
    };
    let expected = "all objects of Tidings exist and belong to the owner of its migration history";
    Finding::wrong(Subject::Owner, error.to_string(), expected, fix)
}

/// Whether the migration history belongs to an untrusted role, which could have created
/// it in order to own the rest.
pub(super) async fn stranger(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Option<Finding>, SchemaError> {
    let query = include_str!("../../sql/migration_owner.sql");
    let rows = client
        .query_typed(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    if !row.try_get::<_, bool>("is_there")? || row.try_get("is_trusted")? {
        return Ok(None);
    }
    let owner: String = row.try_get("owner")?;
    Ok(Some(Finding::hint(
        Subject::Owner,
        format!("{owner} owns Tidings in the schema {schema}, and can read and change all of it"),
        "it belongs to tidings_owner, the owner of the schema, or the role that migrates",
        Fix::Command(format!(
            "tidings roles --schema='{schema}' --from='{owner}' | psql"
        )),
    )))
}
