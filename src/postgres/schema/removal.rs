//! Removes everything from the database that migrations created.

use tokio_postgres::{Client, error::SqlState, types::Type};

use super::{HISTORY, SchemaError, SchemaName, name::quoted, names, ownership::SchemaOwner};
use crate::postgres::connect::{self, DatabaseUrl, Driver};

/// How long to wait for sessions that use the tables. INSERTs queue behind it.
const LOCK_TIMEOUT: &str = "5s";

/// What would be removed, and the session that removes it.
pub struct Removal {
    client: Client,
    _driver: Driver,
    owner: SchemaOwner,
    schema: SchemaName,
    /// The objects, one line per kind.
    pub objects: Vec<String>,
    /// What copies rows of applications' tables into notifications, which would fail.
    pub adopted: Vec<String>,
    /// The number of notifications.
    pub rows: i64,
    /// How many of them are unsent.
    pub unsent: i64,
    /// Other sessions with an `application_name` that starts with tidings.
    pub sessions: i64,
    /// The existing groups of `sql/roles.sql`, which are kept.
    pub groups: Vec<String>,
    owns_schema: bool,
}

impl Removal {
    /// Finds what would be removed.
    ///
    /// # Errors
    ///
    /// [`SchemaError`], also if there is nothing to remove, or another role owns it.
    pub async fn find(url: &DatabaseUrl, schema: &SchemaName) -> Result<Self, SchemaError> {
        let (client, driver) = connect::connect_pinned(url).await?;
        let names: Vec<&str> = names().map(|(_, name)| name).chain([HISTORY]).collect();
        let installed = include_str!("../../../sql/installed.sql");
        let rows = client.query(installed, &[&schema.name(), &names]).await?;
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
        let owner = SchemaOwner::find(&client, schema).await?;
        owner.check(&client, schema).await?;
        let adopted = find_adopted(&client, schema).await?;
        let remains = include_str!("../../../sql/remains.sql");
        let around = client.query_one(remains, &[&schema.name()]).await?;
        owner.act(&client).await?;
        let count = schema.fill(include_str!("../../../sql/count_rows.sql"));
        let counted = client.query_one(&count, &[]).await?;
        Ok(Self {
            owner,
            schema: schema.clone(),
            objects,
            adopted,
            rows: counted.try_get(0)?,
            unsent: counted.try_get(1)?,
            sessions: around.try_get("sessions")?,
            groups: around.try_get("groups")?,
            owns_schema: around.try_get("owns_schema")?,
            client,
            _driver: driver,
        })
    }

    /// Removes everything in one transaction.
    ///
    /// # Errors
    ///
    /// [`SchemaError::Used`], if an object that isn't ours depends on it.
    pub async fn carry_out(self) -> Result<(), SchemaError> {
        let mut script =
            format!("begin; set local lock_timeout = '{LOCK_TIMEOUT}'; set local role none; ");
        for object in &self.adopted {
            script += &format!("drop {object}; ");
        }
        if let SchemaOwner::Reachable(owner) = &self.owner {
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

    /// Removes the schema itself, unless other objects use it. `public` stays, because
    /// every database has it.
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

/// The triggers on applications' tables, and their functions.
///
/// # Errors
///
/// [`SchemaError::Adopted`], if the login role may not drop some of them.
async fn find_adopted(client: &Client, schema: &SchemaName) -> Result<Vec<String>, SchemaError> {
    let query = include_str!("../../../sql/adopted_objects.sql");
    let parameters = [(&schema.name() as _, Type::TEXT)];
    let rows = client.query_typed(query, &parameters).await?;
    let (mut objects, mut of_others) = (Vec::new(), Vec::new());
    for row in &rows {
        if row.try_get("may_drop")? {
            objects.extend(row.try_get::<_, Vec<String>>("objects")?);
        } else {
            let (table, owner): (&str, &str) = (row.try_get("table")?, row.try_get("owner")?);
            of_others.push(format!("{table} (which belongs to {owner})"));
        }
    }
    if of_others.is_empty() {
        return Ok(objects);
    }
    let query = include_str!("../../../sql/session_user.sql");
    Err(SchemaError::Adopted {
        tables: of_others.join(", "),
        role: client.query_one(query, &[]).await?.try_get("role")?,
    })
}
