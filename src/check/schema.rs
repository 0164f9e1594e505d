//! Whether the schema, and the server that it is in, serve this bridge.

use tokio_postgres::error::SqlState;

use super::finding::{Cure, Finding, Topic};
use crate::{
    database::Borrowed,
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
                Topic::Schema,
                error.to_string(),
                "PostgreSQL 13 or later, and a database in UTF8",
                Cure::Advice("move to such a server or database".to_owned()),
            )));
        }
        // Where one can't write, that is told of elsewhere.
        Err(SchemaError::Standby) => {}
        Err(error) => return Err(error),
    }
    let needed = schema::version();
    let fit = match schema::fit(client, schema).await {
        // Among the missing rights.
        Err(SchemaError::Postgres(error))
            if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) =>
        {
            return Ok(None);
        }
        fit => fit?,
    };
    let command = |text: &str| Cure::Command(format!("{text} --schema '{schema}'"));
    let (found, cure) = match fit {
        Fit::Serves => return Ok(None),
        Fit::TooOld { found: None } => (
            format!("the schema {schema} holds no Tidings"),
            command("tidings migrate"),
        ),
        Fit::TooOld { found: Some(found) } => (
            format!("the schema {schema} is too old: version {found}"),
            command("tidings migrate"),
        ),
        Fit::TooNew { found } => (
            format!(
                "the schema {schema} is too new: version {found} has taken something away that \
                 this bridge needs"
            ),
            Cure::Advice("start the newer tidings, or restore the database".to_owned()),
        ),
    };
    Ok(Some(Finding::wrong(
        Topic::Schema,
        found,
        format!("version {needed}, which this tidings brings, or one that still serves it"),
        cure,
    )))
}
