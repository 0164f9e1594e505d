//! Whether bridges see every row of their tables.

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::Borrowed,
    schema::{SchemaError, SchemaName},
    visibility::{self, HiddenRows, Obstacle, Readers},
};

/// What hides rows from bridges, or from the functions that they call.
pub(super) async fn hidden(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let hidden = visibility::examine(client, schema, Readers::Bridges).await?;
    Ok(hidden.iter().map(finding).collect())
}

fn finding(hidden: &HiddenRows) -> Finding {
    let expected = match hidden.kind {
        Obstacle::RowSecurity => {
            "no row-level security for the bridge's role and the tables' owner: with it, nothing \
             is delivered, or no ticket is valid. After `disable row level security`, only GRANT \
             controls access; to keep row-level security for other roles, a superuser can exempt \
             these two instead: alter role … bypassrls. A policy is not enough, because the \
             bridge refuses to read through policies"
        }
        Obstacle::Relation => {
            "the tables that `tidings migrate` created: anything else may leave rows out"
        }
        Obstacle::Logged => {
            "an UNLOGGED table: a crash empties it, which tells bridges to read rows again that \
             were not on disk"
        }
        Obstacle::Rule => {
            "no rule that rewrites INSERTs or UPDATEs there: with one, rows don't arrive or can't \
             be marked"
        }
    };
    let fix = match &hidden.fix {
        Some(fix) => Fix::Sql(fix.clone()),
        None => Fix::Advice(hidden.advice()),
    };
    Finding::wrong(Subject::Hidden, hidden.found(), expected, fix)
}
