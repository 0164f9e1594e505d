//! Advisory locks of Tidings that unrelated sessions hold.

use tokio_postgres::{Row, types::Type};

use super::finding::{Cure, Finding, Topic};
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
        let (what, cure): (String, String) = (row.try_get("what")?, row.try_get("cure")?);
        let (lock, effect) = match row.try_get::<_, &str>("lock")? {
            "bell" => (
                "by which bridges agree on whether writers ring",
                "while somebody else holds it, bridges can't sleep and poll without pause, or \
                 writers ring without need; rows are delivered all the same",
            ),
            "prune" => (
                "by which one of several bridges removes old rows",
                "while somebody else holds it, all bridges that remove old rows do so, and each \
                 reads the same rows",
            ),
            _ => (
                "around migrations",
                "while somebody else holds it, `tidings migrate` can't change the schema; bridges \
                 start if the schema is current",
            ),
        };
        Ok(Finding::wrong(
            Topic::Lock,
            format!("{what} holds the advisory lock {lock}"),
            format!("only Tidings holds it: {effect}"),
            Cure::Sql(cure),
        ))
    };
    rows.iter().map(finding).collect()
}
