//! Advisory locks of Tidings that unrelated sessions hold.

use tokio_postgres::{Row, types::Type};

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::{Borrowed, Queries},
    schema::{SchemaError, SchemaName},
};

/// Sessions that hold an advisory lock of Tidings although their role has no use for it.
pub(super) async fn strangers(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../../sql/lock_strangers.sql");
    let rows = client
        .query_typed(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let finding = |row: &Row| {
        let (what, fix): (String, String) = (row.try_get("what")?, row.try_get("fix")?);
        let (lock, effect) = match row.try_get::<_, &str>("lock")? {
            "bell" => (
                "with which bridges agree on whether writers send NOTIFY",
                "while another session holds it, bridges can't sleep and poll without pause, or \
                 writers send NOTIFY needlessly; rows are still delivered",
            ),
            "feed" => (
                "with which bridges agree on which of them reads the table for the others",
                "while another session holds it, each bridge reads for itself",
            ),
            "prune" => (
                "for removing old rows",
                "while another session holds it, every bridge that removes old rows does so, and \
                 each reads the same rows",
            ),
            _ => (
                "for migrations",
                "while another session holds it, `tidings migrate` can't change the schema; \
                 bridges start if the schema is current",
            ),
        };
        Ok(Finding::wrong(
            Subject::Lock,
            format!("{what} holds the advisory lock {lock}"),
            format!("only Tidings holds it: {effect}"),
            Fix::Sql(fix),
        ))
    };
    rows.iter().map(finding).collect()
}
