//! `tidings check`: what is wrong with the schema and the rights in it, and what
//! to do about it.

use std::fmt;

use tokio_postgres::{Client, error::SqlState};
use tracing::warn;

use crate::{
    database::{self, DatabaseUrl},
    schema::{self, Fit, SchemaError, SchemaName},
};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// What is so.
    pub what: String,
    /// What to do: a statement, or a command.
    pub cure: String,
}

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The schema doesn't serve this bridge.
    Schema,
    /// The bridge may not do what it has to do.
    Missing,
    /// Somebody else may read notifications.
    Read,
    /// Somebody else may do something that is only ours.
    Wide,
    /// It could be better.
    Hint,
}

impl Finding {
    /// Whether it must be put right.
    pub fn is_wrong(&self) -> bool {
        self.kind != Kind::Hint
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_wrong() { "wrong" } else { "hint" };
        write!(f, "{kind}: {}: {}", self.what, self.cure)
    }
}

/// All that is wrong, for the role that `url` names.
///
/// # Errors
///
/// [`SchemaError`], if it can't be found out.
pub async fn examine(url: &DatabaseUrl, schema: &SchemaName) -> Result<Vec<Finding>, SchemaError> {
    let (client, _driver) = database::connect(url, |_| ()).await?;
    let mut findings = Vec::new();
    findings.extend(misfit(&client, schema).await?);
    findings.extend(missing_rights(&client, schema).await?);
    findings.extend(foreign_rights(&client, schema).await?);
    findings.extend(too_mighty(&client, schema).await?);
    Ok(findings)
}

/// Warns of what lets others read notifications.
///
/// # Errors
///
/// [`SchemaError`], if it can't be found out.
pub async fn warn_of_readers(url: &DatabaseUrl, schema: &SchemaName) -> Result<(), SchemaError> {
    let (client, _driver) = database::connect(url, |_| ()).await?;
    let findings = foreign_rights(&client, schema).await?;
    for Finding { what, cure, .. } in findings.iter().filter(|found| found.kind == Kind::Read) {
        warn!("{what}, and so can read notifications; if that is not meant: {cure}");
    }
    Ok(())
}

async fn misfit(client: &Client, schema: &SchemaName) -> Result<Option<Finding>, SchemaError> {
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
    let (what, cure) = match fit {
        Fit::Serves => return Ok(None),
        Fit::TooOld { found: None } => (
            format!("the schema {schema} holds no Tidings"),
            "run `tidings migrate`",
        ),
        Fit::TooOld { found: Some(found) } => (
            format!("the schema {schema} is at version {found}, and this bridge needs {needed}"),
            "run `tidings migrate`",
        ),
        Fit::TooNew { found } => (
            format!(
                "the schema {schema} is at version {found} and no longer serves this bridge, \
                 which knows {needed}"
            ),
            "start the newer tidings",
        ),
    };
    Ok(Some(Finding {
        kind: Kind::Schema,
        what,
        cure: cure.to_owned(),
    }))
}

async fn missing_rights(client: &Client, schema: &SchemaName) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../sql/missing_rights.sql");
    let rows = client.query(query, &[&schema.name()]).await?;
    let finding = |row: &tokio_postgres::Row| {
        let (privilege, target): (String, String) =
            (row.try_get("privilege")?, row.try_get("target")?);
        Ok(Finding {
            kind: Kind::Missing,
            what: format!("the bridge needs {privilege} on {target}"),
            cure: row.try_get("cure")?,
        })
    };
    rows.iter().map(finding).collect()
}

async fn foreign_rights(client: &Client, schema: &SchemaName) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../sql/foreign_rights.sql");
    let rows = client.query(query, &[&schema.name()]).await?;
    let finding = |row: &tokio_postgres::Row| {
        let (grantee, what): (String, String) = (row.try_get("grantee")?, row.try_get("what")?);
        let reads = row.try_get("reads")?;
        Ok(Finding {
            kind: if reads { Kind::Read } else { Kind::Wide },
            what: format!("{grantee} has {what}"),
            cure: row.try_get("cure")?,
        })
    };
    rows.iter().map(finding).collect()
}

/// A bridge that was broken into could do what its role can.
async fn too_mighty(client: &Client, schema: &SchemaName) -> Result<Option<Finding>, SchemaError> {
    let query = include_str!("../sql/session_role.sql");
    let row = client.query_one(query, &[&schema.name()]).await?;
    let role: String = row.try_get("role")?;
    let what = if row.try_get("is_superuser")? {
        format!("{role} is a superuser")
    } else if row.try_get("is_owner")? {
        format!("{role} acts as the owner of the tables")
    } else {
        return Ok(None);
    };
    Ok(Some(Finding {
        kind: Kind::Hint,
        what,
        cure: "let `tidings serve` log in as a member of tidings_bridge alone (sql/roles.sql)"
            .to_owned(),
    }))
}
