//! Privileges that the bridge lacks, and privileges that others should not have.

use tokio_postgres::{Row, types::Type};

use super::finding::{Finding, Fix, Subject};
use crate::postgres::{
    connect::{Borrowed, Queries},
    schema::{SchemaError, SchemaName},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The session's role. This is meaningful only if it is the bridge's role.
    Bridge,
    /// Roles that insert notifications.
    Writers,
}

/// Privileges that the session's role or writers lack.
pub(super) async fn missing(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<(Who, Finding)>, SchemaError> {
    let query = include_str!("../../sql/missing_rights.sql");
    let rows = client
        .query_typed(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let finding = |row: &Row| {
        let text = |name: &str| row.try_get::<_, String>(name);
        let (privilege, target, who) = (text("privilege")?, text("target")?, text("who")?);
        let finding = Finding::wrong(
            Subject::Missing,
            format!("{who} lacks {privilege} on {target}"),
            text("why")?,
            Fix::Sql(text("fix")?),
        );
        let who = match row.try_get("is_bridge")? {
            true => Who::Bridge,
            false => Who::Writers,
        };
        Ok((who, finding))
    };
    rows.iter().map(finding).collect()
}

/// Privileges of roles that are not part of Tidings.
pub(super) async fn foreign(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../../sql/foreign_rights.sql");
    let rows = client
        .query_typed(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let finding = |row: &Row| {
        let (grantee, what): (String, String) = (row.try_get("grantee")?, row.try_get("what")?);
        if row.try_get("creates")? {
            return creates(&grantee, &what, row.try_get("fix")?);
        }
        let (topic, expected) = if row.try_get("reads")? {
            (
                Subject::Read,
                "only the bridge reads notifications, and only tidings_issuer opens streams",
            )
        } else {
            (
                Subject::Wide,
                "only the groups of `tidings roles` have privileges here",
            )
        };
        Ok(Finding::wrong(
            topic,
            format!("{grantee} has {what}"),
            expected,
            Fix::Sql(row.try_get("fix")?),
        ))
    };
    rows.iter().map(finding).collect()
}

/// Only a hint in most schemas: Tidings doesn't look there for functions of other roles.
/// What applications execute may: by default `public` is on the search path of every
/// session.
fn creates(grantee: &str, what: &str, fix: String) -> Result<Finding, SchemaError> {
    let found = format!("{grantee} has {what}");
    let expected = "only the owner creates objects in this schema: other objects can take a name \
                    that a later release needs, or replace a function that an application calls";
    Ok(match grantee {
        "public" => Finding::wrong(Subject::Create, found, expected, Fix::Sql(fix)),
        _ => Finding::hint(Subject::Create, found, expected, Fix::Sql(fix)),
    })
}

/// Whether the session's role has more privileges than a bridge needs: an attacker who
/// breaks into the bridge can do whatever its role can.
pub(super) async fn over_privileged(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Option<Finding>, SchemaError> {
    let query = include_str!("../../sql/session_role.sql");
    let row = client
        .query_typed_one(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let role: String = row.try_get("role")?;
    let found = if row.try_get("is_superuser")? {
        format!("{role} is a superuser")
    } else if row.try_get("is_owner")? {
        format!("{role} acts as the owner of the tables")
    } else {
        return Ok(None);
    };
    Ok(Some(Finding::hint(
        Subject::Role,
        found,
        "few privileges: an attacker who breaks into the bridge can do whatever its role can",
        Fix::Advice(
            "let `tidings serve` log in as a role that is only a member of tidings_bridge \
             (`tidings roles`)"
                .to_owned(),
        ),
    )))
}
