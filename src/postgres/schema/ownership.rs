//! Determines which role owns the objects that migrations create, whatever role logs in
//! to run them.

use tokio_postgres::Client;

use super::{SchemaError, SchemaName, name::quoted};

/// The owner of Tidings' objects.
#[derive(Debug)]
pub(super) enum SchemaOwner {
    /// A role that this session may switch to.
    Reachable(String),
    /// A role that this session may not switch to.
    Other(String),
    /// Nothing exists yet: the role that creates the objects will own them.
    Nobody,
}

impl SchemaOwner {
    /// Finds the owner.
    ///
    /// # Errors
    ///
    /// [`SchemaError::Stranger`], if the history belongs to a role that may have created
    /// it in order to own what migrations create.
    pub(super) async fn find(client: &Client, schema: &SchemaName) -> Result<Self, SchemaError> {
        let find = include_str!("../../../sql/migration_owner.sql");
        let Some(row) = client.query_opt(find, &[&schema.name()]).await? else {
            return Ok(Self::Nobody);
        };
        let name = row.try_get("owner")?;
        let is_there = row.try_get("is_there")?;
        if is_there && !row.try_get("is_trusted")? {
            return Err(SchemaError::Stranger {
                schema: schema.clone(),
                owner: name,
                role: row.try_get("role")?,
                schema_owner: row.try_get("schema_owner")?,
            });
        }
        Ok(if row.try_get("may_act")? {
            Self::Reachable(name)
        } else if is_there {
            Self::Other(name)
        } else {
            // The group exists for another database of this cluster.
            Self::Nobody
        })
    }

    /// Switches the session to the owner, if possible.
    pub(super) async fn act(&self, client: &Client) -> Result<(), SchemaError> {
        if let Self::Reachable(owner) = self {
            let act = format!("set role {}", quoted(owner));
            client.batch_execute(&act).await?;
        }
        Ok(())
    }

    /// Checks whether the current role may change the existing objects and create others.
    ///
    /// # Errors
    ///
    /// [`SchemaError::NotOwner`] with the statement that grants what is missing.
    pub(super) async fn check(
        &self,
        client: &Client,
        schema: &SchemaName,
    ) -> Result<(), SchemaError> {
        let may_create = include_str!("../../../sql/may_create.sql");
        let row = client.query_one(may_create, &[&schema.name()]).await?;
        let role: String = row.try_get(1)?;
        let fix = match self {
            Self::Other(owner) => format!("grant {} to {};", quoted(owner), quoted(&role)),
            _ if row.try_get(0)? => return Ok(()),
            _ => format!(
                "grant usage, create on schema {} to {};",
                schema.quoted(),
                quoted(&role)
            ),
        };
        Err(SchemaError::NotOwner {
            schema: schema.clone(),
            role,
            fix,
        })
    }

    /// Grants the groups of `sql/roles.sql`, if they exist, their privileges on the
    /// existing objects, if this session may do so.
    pub(super) async fn grant(
        &self,
        client: &Client,
        schema: &SchemaName,
    ) -> Result<(), SchemaError> {
        if let Self::Other(_) = self {
            return Ok(());
        }
        let grants = schema.fill(include_str!("../../../sql/grants.sql"));
        let grants = format!("begin; {grants}; commit");
        Ok(client.batch_execute(&grants).await?)
    }
}
