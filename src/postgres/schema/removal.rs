//! Takes everything out of the database that migrations put there.

use tokio_postgres::{Client, error::SqlState};

use super::{HISTORY, NAMES, SchemaError, SchemaName, ownership::Owner, quoted};
use crate::postgres::connect::{self, DatabaseUrl, Driver};

/// How long it waits for those who use the tables. INSERTs queue behind it.
const LOCK_TIMEOUT: &str = "5s";

/// What would go, and the session that would take it away.
pub struct Removal {
    client: Client,
    _driver: Driver,
    owner: Owner,
    schema: SchemaName,
    /// The objects, a kind a line.
    pub objects: Vec<String>,
    /// How many notifications there are, and how many of them wait.
    pub rows: i64,
    /// See `rows`.
    pub unsent: i64,
    /// Sessions that call themselves tidings.
    pub sessions: i64,
    /// The groups of `sql/roles.sql`, which stay.
    pub groups: Vec<String>,
    owns_schema: bool,
}

impl Removal {
    /// Looks what there is.
    ///
    /// # Errors
    ///
    /// [`SchemaError`], also if there is nothing, or it is somebody else's.
    pub async fn find(url: &DatabaseUrl, schema: &SchemaName) -> Result<Self, SchemaError> {
        let (client, driver) = connect::connect_pinned(url).await?;
        let names: Vec<&str> = NAMES
            .iter()
            .map(|&(.., name)| name)
            .chain([HISTORY])
            .collect();
        let installed = include_str!("../../../sql/installed.sql");
        let rows = client.query(installed, &[&schema.0, &names]).await?;
        let object = |row: &tokio_postgres::Row| {
            let (kind, identities): (&str, &str) =
                (row.try_get("kind")?, row.try_get("identities")?);
            Ok(format!("{kind} {identities}"))
        };
        let objects: Result<Vec<String>, tokio_postgres::Error> = rows.iter().map(object).collect();
        let objects = objects?;
        if objects.is_empty() {
            return Err(SchemaError::Nothing(schema.clone()));
        }
        let owner = Owner::find(&client, schema).await?;
        owner.check(&client, schema).await?;
        let remains = include_str!("../../../sql/remains.sql");
        let around = client.query_one(remains, &[&schema.0]).await?;
        owner.act(&client).await?;
        let count = "select count(*), count(*) filter (where sent_at is null) from ";
        let count = format!("{count}{}", schema.qualified("notifications"));
        let counted = client.query_one(&count, &[]).await?;
        Ok(Self {
            owner,
            schema: schema.clone(),
            objects,
            rows: counted.try_get(0)?,
            unsent: counted.try_get(1)?,
            sessions: around.try_get("sessions")?,
            groups: around.try_get("groups")?,
            owns_schema: around.try_get("owns_schema")?,
            client,
            _driver: driver,
        })
    }

    /// Takes it away, all or nothing.
    ///
    /// # Errors
    ///
    /// [`SchemaError::Used`], if something that isn't ours uses it.
    pub async fn carry_out(self) -> Result<(), SchemaError> {
        let mut script = format!("begin; set local lock_timeout = '{LOCK_TIMEOUT}'; ");
        if let Owner::Reachable(owner) = &self.owner {
            script += &format!("set local role {}; ", quoted(owner));
        }
        for object in &self.objects {
            script += &format!("drop {object}; ");
        }
        let schema = self.schema.quoted();
        if self.owns_schema {
            script += "set local role none; ";
            for group in &self.groups {
                script += &format!("revoke all on schema {schema} from {}; ", quoted(group));
            }
        }
        script += "commit";
        self.client
            .batch_execute(&script)
            .await
            .map_err(|error| self.meaning(error))?;
        self.drop_empty_schema().await
    }

    /// The schema itself, unless somebody uses it for something else. That of
    /// `public` is every database's own.
    async fn drop_empty_schema(&self) -> Result<(), SchemaError> {
        if !self.owns_schema || self.schema == SchemaName::public() {
            return Ok(());
        }
        let drop = format!("set role none; drop schema {}", self.schema.quoted());
        match self.client.batch_execute(&drop).await {
            Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => Ok(()),
            outcome => Ok(outcome?),
        }
    }

    fn meaning(&self, error: tokio_postgres::Error) -> SchemaError {
        let detail = error.as_db_error().and_then(|error| error.detail());
        match (error.code(), detail) {
            (Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST), Some(detail)) => SchemaError::Used {
                schema: self.schema.clone(),
                by: detail.replace('\n', "; "),
            },
            (Some(&SqlState::LOCK_NOT_AVAILABLE), _) => SchemaError::Busy,
            _ => error.into(),
        }
    }
}
