//! Why the schema can't be used.

use std::{fmt, time::Duration};

use super::{MigrationLockHolder, SchemaName, locks::LockHolder, quoted};
use crate::postgres::connect::{ConnectError, describe};

/// Why the schema can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The connection failed.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// A migration failed and was rolled back.
    #[error("a migration failed and was rolled back: {}", causes(.0))]
    Migration(#[from] refinery::Error),
    /// The server is too old.
    #[error("the server is PostgreSQL {0}; Tidings needs 13 or later")]
    Server(String),
    /// The database's encoding can't store all text.
    #[error(
        "the database's encoding is {0}; Tidings needs a database created with encoding 'UTF8'"
    )]
    Encoding(String),
    /// The server is read-only.
    #[error("the server is a standby: point DATABASE_URL at the primary")]
    Standby,
    /// The schema doesn't exist and this role can't create it.
    #[error("the schema {schema} does not exist, and {role} may not create it; let a DBA run: \
             create schema {} authorization {};", schema.quoted(), quoted(role))]
    NoSchema {
        schema: SchemaName,
        /// The current role.
        role: String,
    },
    /// The schema must be changed, but this role may not do so.
    #[error(
        "the schema {schema} is to be changed, and {role} may not do it: let its owner \
             run `tidings migrate`, or what you have run; or, if this role is to do it, let a DBA run: {cure}"
    )]
    NotOwner {
        schema: SchemaName,
        /// The current role.
        role: String,
        /// The statement that grants the missing privilege.
        cure: String,
    },
    /// The history belongs to a role that is not trusted.
    #[error(
        "the history of Tidings in the schema {schema} belongs to {owner}, which is neither \
             tidings_owner nor the owner of the schema ({schema_owner}) nor the role that you log \
             in as ({role}), and would own the notifications. If {owner} installed Tidings here, \
             log in as {owner}, or hand it over first: psql -v schema={schema} -v from={owner} -f \
             sql/roles.sql. If not, remove it: drop table {}.tidings_schema_history;",
        schema.quoted()
    )]
    Stranger {
        schema: SchemaName,
        /// The owner of the history.
        owner: String,
        /// The login role.
        role: String,
        /// The owner of the schema.
        schema_owner: String,
    },
    /// The history lists objects that don't exist.
    #[error(
        "the history of Tidings in the schema {schema} says version {version}, but {missing}restore \
             the whole schema from one backup, or, if it was put there by mistake, remove it: drop \
             table {}.tidings_schema_history;",
        schema.quoted()
    )]
    Incomplete {
        schema: SchemaName,
        /// The version according to the history.
        version: i32,
        missing: Box<MissingObject>,
    },
    /// Another object has a name that a migration needs.
    #[error(
        "the schema {schema} already holds {what} that Tidings did not make, and Tidings needs \
             that name: set TIDINGS_SCHEMA (or --schema) to another schema, such as tidings"
    )]
    Foreign {
        schema: SchemaName,
        /// The kind and name of the object.
        what: String,
    },
    /// Another session is migrating, or holds the lock.
    #[error(
        "the advisory lock around migrations of the schema {schema} was not free for \
         {} s. {holder}. If that is another `tidings migrate`, wait for it to end; any role can hold \
         this lock, so if it is something else, end it{}",
        waited.as_secs(), holder.cure()
    )]
    Locked {
        schema: SchemaName,
        /// How long it was tried.
        waited: Duration,
        holder: Box<MigrationLockHolder>,
    },
    /// Long transactions of other sessions blocked the migration.
    #[error(
        "the schema {schema} was not migrated, or not to the end: for {} s a table was not free, and \
         {holder}. Nothing was left half done, and the older bridges go on: let that transaction \
         end{}, and run `tidings migrate` again, or with --lock-limit=10m", lock_limit.as_secs(),
         holder.pid().map_or_else(String::new, |pid| format!(", or end it (select pg_terminate_backend({pid});)"))
    )]
    InUse {
        schema: SchemaName,
        /// How long it was tried.
        lock_limit: Duration,
        holder: LockHolder,
    },
    /// `serve` found a schema that is too old, and may not change it.
    #[error("the schema {schema} {found}, and this bridge needs version {needed}: run \
             `tidings migrate`{}", if *.may_migrate { "" } else { " (TIDINGS_MIGRATE is never)" })]
    TooOld {
        schema: SchemaName,
        /// The state of the schema: `is at version 3`.
        found: String,
        /// The version that this bridge needs.
        needed: i32,
        /// Whether `TIDINGS_MIGRATE` allows migrations.
        may_migrate: bool,
    },
    /// A newer migration has removed something that this bridge needs.
    #[error(
        "the schema {schema} is at version {found} and no longer serves this bridge, which \
             knows version {needed}: start the newer tidings"
    )]
    TooNew {
        schema: SchemaName,
        /// The version in the database.
        found: i32,
        /// The version of this bridge.
        needed: i32,
    },
    /// There is nothing to remove.
    #[error("the schema {0} holds no Tidings, so there is nothing to remove")]
    Nothing(SchemaName),
    /// An object that isn't ours depends on ours.
    #[error(
        "nothing was removed: what isn't Tidings' own uses what is in the schema {schema} ({by}): \
             remove or change that first"
    )]
    Used {
        schema: SchemaName,
        /// The dependent objects, as Postgres lists them.
        by: String,
    },
    /// Another session holds a lock on a table for too long.
    #[error(
        "nothing was removed: others are using the tables; stop the bridges and long transactions \
             (`tidings status` names the longest), and try again"
    )]
    Busy,
    /// Logical replication writes to the table.
    #[error(
        "the table notifications in the schema {schema} is filled by the subscription \
             {subscription}: its rows bear the transaction ids of the publisher, which mean nothing \
             here, so rows would be missed. To switch over to this database, stop the writers of \
             the publisher, wait until the subscription has caught up, `drop subscription` it, and \
             start the bridge. To keep the subscription, leave the table out of the publication"
    )]
    Subscribed {
        schema: SchemaName,
        subscription: String,
    },
    /// The table holds rows restored from another cluster, and restamping them failed.
    #[error("the table holds rows with transaction ids of another cluster (it was dumped and \
             restored), which would never be seen: run `tidings migrate` as the table's owner \
             ({})", describe(.0))]
    Restored(tokio_postgres::Error),
}

impl SchemaError {
    /// Whether retrying may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_passing())
    }
}

/// An object that the history lists, and that doesn't exist or belongs to another role.
#[derive(Debug)]
pub struct MissingObject {
    /// The owner of the history.
    pub(super) owner: String,
    /// The name of the object.
    pub(super) name: String,
    /// The owners of objects of that name, if there are any.
    pub(super) owners: Option<String>,
    /// The statement that gives such an object to the owner of the history.
    pub(super) cure: Option<String>,
}

impl MissingObject {
    /// The statement that gives an object of that name to the owner of the history.
    pub fn cure(&self) -> Option<&str> {
        self.cure.as_deref()
    }
}

impl fmt::Display for MissingObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, name, .. } = self;
        match &self.owners {
            None => write!(f, "{name} is missing: ")?,
            Some(owners) => write!(
                f,
                "{name} belongs to {owners}, and the history to {owner}: "
            )?,
        }
        match &self.cure {
            None => Ok(()),
            Some(cure) => write!(f, "if you trust that role, {cure} Otherwise "),
        }
    }
}

/// The error with its causes: refinery's own message hides what Postgres reported.
fn causes(error: &refinery::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = match cause.downcast_ref::<tokio_postgres::Error>() {
            Some(error) => describe(error),
            None => cause.to_string(),
        };
        text = format!("{text}: {cause_text}");
        source = cause.source();
    }
    text
}
