//! Whether the triggers exist and fire.

use tokio_postgres::{Row, types::Type};

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::{Borrowed, Queries},
    schema::{SchemaError, SchemaName},
};

pub(super) async fn gone(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../../sql/triggers.sql");
    let rows = client
        .query_typed(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let finding = |row: &Row| {
        let text = |name: &str| row.try_get::<_, String>(name);
        let (trigger, table) = (text("trigger")?, text("table")?);
        let found = match row.try_get::<_, Option<&str>>("fires")? {
            None => format!("the trigger {trigger} on {table} is missing"),
            Some("D") => format!("the trigger {trigger} on {table} is disabled"),
            Some("O") => format!(
                "the trigger {trigger} on {table} is not set to ENABLE ALWAYS: it was disabled \
                 and enabled again, as `pg_restore --disable-triggers` does"
            ),
            Some(_) => format!("the trigger {trigger} on {table} fires only in replica mode"),
        };
        Ok(Finding::wrong(
            Subject::Trigger,
            found,
            text("effect")?,
            Fix::Sql(text("fix")?),
        ))
    };
    rows.iter().map(finding).collect()
}
