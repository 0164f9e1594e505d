//! To whom belongs what migrations make, whoever logs in to run them.

use tokio_postgres::Client;

use super::{SchemaError, SchemaName, quoted};

/// To whom things belong.
#[derive(Debug)]
pub(super) enum Owner {
    /// To a role as which this session may act.
    Reachable(String),
    /// To somebody else.
    Other(String),
    /// To whoever makes them: there is nothing yet.
    Nobody,
}

impl Owner {
    /// # Errors
    ///
    /// [`SchemaError::Stranger`], if what is there belongs to a role that could have
    /// put it there to own what migrations make.
    pub(super) async fn find(client: &Client, schema: &SchemaName) -> Result<Self, SchemaError> {
        let find = include_str!("../../../sql/migration_owner.sql");
        let Some(row) = client.query_opt(find, &[&schema.0]).await? else {
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
            // The group serves another database of this cluster.
            Self::Nobody
        })
    }

    /// From here on the session is the owner, if it may be.
    pub(super) async fn act(&self, client: &Client) -> Result<(), SchemaError> {
        if let Self::Reachable(owner) = self {
            let act = format!("set role {}", quoted(owner));
            client.batch_execute(&act).await?;
        }
        Ok(())
    }

    /// Whether who acts now may change what is there, and add to it.
    ///
    /// # Errors
    ///
    /// [`SchemaError::NotOwner`] says what is missing.
    pub(super) async fn check(
        &self,
        client: &Client,
        schema: &SchemaName,
    ) -> Result<(), SchemaError> {
        let may_create = "select has_schema_privilege($1, 'create'), current_user::text";
        let row = client.query_one(may_create, &[&schema.0]).await?;
        let role: String = row.try_get(1)?;
        let cure = match self {
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
            cure,
        })
    }

    /// Gives the groups of `sql/roles.sql`, as far as there are any, their
    /// rights on what is there, if it is the session's to give.
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
