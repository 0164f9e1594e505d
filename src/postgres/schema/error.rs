//! Why the schema can't be used.

use std::{fmt, time::Duration};

use super::{MigrationLockHolder, SchemaName, locks::LockHolder, quoted};
use crate::postgres::connect::{ConnectError, describe};

/// Why the schema can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// Postgres refused a statement.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// A migration failed; it was rolled back.
    #[error("a migration failed and was rolled back: {}", causes(.0))]
    Migration(#[from] refinery::Error),
    /// Too old a server.
    #[error("the server is PostgreSQL {0}; Tidings needs 13 or later")]
    Server(String),
    /// Text would be mangled.
    #[error(
        "the database's encoding is {0}; Tidings needs a database created with encoding 'UTF8'"
    )]
    Encoding(String),
    /// Nothing can be written.
    #[error("the server is a standby: point DATABASE_URL at the primary")]
    Standby,
    /// The schema is missing and this role can't make it.
    #[error("the schema {schema} does not exist, and {role} may not create it; let a DBA run: \
             create schema {} authorization {};", schema.quoted(), quoted(role))]
    NoSchema {
        /// What is missing.
        schema: SchemaName,
        /// Who tried.
        role: String,
    },
    /// The schema must be changed, and this role may not.
    #[error(
        "the schema {schema} is to be changed, and {role} may not do it: let its owner \
             run `tidings migrate`, or what you have run; or, if this role is to do it, let a DBA run: {cure}"
    )]
    NotOwner {
        /// Where.
        schema: SchemaName,
        /// Who tried.
        role: String,
        /// The statement that lets the role do it.
        cure: String,
    },
    /// What is there belongs to a role that nobody has to trust.
    #[error(
        "the history of Tidings in the schema {schema} belongs to {owner}, which is neither \
             tidings_owner nor the owner of the schema ({schema_owner}) nor the role that you log \
             in as ({role}), and would own the notifications. If {owner} installed Tidings here, \
             log in as {owner}, or hand it over first: psql -v schema={schema} -v from={owner} -f \
             sql/roles.sql. If not, remove it: drop table {}.tidings_schema_history;",
        schema.quoted()
    )]
    Stranger {
        /// Where.
        schema: SchemaName,
        /// Whose the history is.
        owner: String,
        /// Who tried.
        role: String,
        /// Whose the schema is.
        schema_owner: String,
    },
    /// The history tells of objects that are not there.
    #[error(
        "the history of Tidings in the schema {schema} says version {version}, but {missing}restore \
             the whole schema from one backup, or, if it was put there by mistake, remove it: drop \
             table {}.tidings_schema_history;",
        schema.quoted()
    )]
    Incomplete {
        /// Where.
        schema: SchemaName,
        /// What the history says.
        version: i32,
        /// What is missing.
        missing: Box<MissingObject>,
    },
    /// Something that is not ours bears one of our names.
    #[error(
        "the schema {schema} already holds {what} that Tidings did not make, and Tidings needs \
             that name: set TIDINGS_SCHEMA (or --schema) to another schema, such as tidings"
    )]
    Foreign {
        /// Where.
        schema: SchemaName,
        /// Kind and name.
        what: String,
    },
    /// Somebody else is migrating, or holds the lock.
    #[error(
        "the advisory lock around migrations of the schema {schema} was not free for \
         {} s. {holder}. If that is another `tidings migrate`, wait for it to end; any role can hold \
         this lock, so if it is something else, end it{}",
        waited.as_secs(), holder.cure()
    )]
    Locked {
        /// Where.
        schema: SchemaName,
        /// For how long it was tried.
        waited: Duration,
        /// Who holds the lock.
        holder: Box<MigrationLockHolder>,
    },
    /// Transactions that are open for long are in the way.
    #[error(
        "the schema {schema} was not migrated, or not to the end: for {} s a table was not free, and \
         {holder}. Nothing was left half done, and the older bridges go on: let that transaction \
         end{}, and run `tidings migrate` again, or with --lock-limit=10m", lock_limit.as_secs(),
         holder.pid().map_or_else(String::new, |pid| format!(", or end it (select pg_terminate_backend({pid});)"))
    )]
    InUse {
        /// Where.
        schema: SchemaName,
        /// For how long it was tried.
        lock_limit: Duration,
        /// Who uses it.
        holder: LockHolder,
    },
    /// `serve` found too old a schema and may not change it.
    #[error("the schema {schema} {found}, and this bridge needs version {needed}: run \
             `tidings migrate`{}", if *.may_migrate { "" } else { " (TIDINGS_MIGRATE is never)" })]
    TooOld {
        /// Where.
        schema: SchemaName,
        /// What is there.
        found: String,
        /// What should be.
        needed: i32,
        /// Whether the setting allows it.
        may_migrate: bool,
    },
    /// A newer bridge has taken something away.
    #[error(
        "the schema {schema} is at version {found} and no longer serves this bridge, which \
             knows version {needed}: start the newer tidings"
    )]
    TooNew {
        /// Where.
        schema: SchemaName,
        /// What is there.
        found: i32,
        /// What this bridge knows.
        needed: i32,
    },
    /// There is nothing to remove.
    #[error("the schema {0} holds no Tidings, so there is nothing to remove")]
    Nothing(SchemaName),
    /// Something that isn't ours would go with it.
    #[error(
        "nothing was removed: what isn't Tidings' own uses what is in the schema {schema} ({by}): \
             remove or change that first"
    )]
    Used {
        /// Where.
        schema: SchemaName,
        /// What Postgres says.
        by: String,
    },
    /// Somebody else holds a table for too long.
    #[error(
        "nothing was removed: others are using the tables; stop the bridges and long transactions \
             (`tidings status` names the longest), and try again"
    )]
    Busy,
    /// Logical replication writes into the table.
    #[error(
        "the table notifications in the schema {schema} is filled by the subscription \
             {subscription}: its rows bear the transaction ids of the publisher, which mean nothing \
             here, so rows would be missed. To switch over to this database, stop the writers of \
             the publisher, wait until the subscription has caught up, `drop subscription` it, and \
             start the bridge. To keep the subscription, leave the table out of the publication"
    )]
    Subscribed {
        /// Where.
        schema: SchemaName,
        /// Its name.
        subscription: String,
    },
    /// Rows were restored from another cluster.
    #[error("the table holds rows with transaction ids of another cluster (it was dumped and \
             restored), which would never be seen: run `tidings migrate` as the table's owner \
             ({})", describe(.0))]
    Restored(tokio_postgres::Error),
}

impl SchemaError {
    /// Whether waiting may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_passing())
    }
}

/// An object that the history tells of, and that is not there or belongs to another role.
#[derive(Debug)]
pub struct MissingObject {
    /// Whose the history is.
    pub(super) owner: String,
    /// What it is called.
    pub(super) name: String,
    /// Whose objects of that name there are.
    pub(super) owners: Option<String>,
    /// What gives such an object to the owner of the history.
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

/// refinery hides what Postgres said behind its own sentence.
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
