//! Why the schema can't be used.

use std::{fmt, time::Duration};

use super::{MigrationLockHolder, SchemaName, locks::LockHolder, name::quoted};
use crate::{postgres::connect::ConnectError, runtime::error_chain::ErrorChain};

/// Why the schema can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    /// A migration failed and was rolled back.
    #[error("a migration failed and was rolled back")]
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
    #[error("the schema {schema} does not exist, and {role} may not create it; have a DBA run: \
             create schema {} authorization {};", schema.quoted(), quoted(role))]
    NoSchema {
        schema: SchemaName,
        /// The current role.
        role: String,
    },
    /// The schema must be changed, but this role may not do so.
    #[error(
        "the schema {schema} must be changed, and {role} may not do so: have its owner run \
         `tidings migrate` or the command that you ran; or, to let this role do it, have a DBA \
         run: {fix}"
    )]
    NotOwner {
        schema: SchemaName,
        /// The current role.
        role: String,
        /// The statement that grants the missing privilege.
        fix: String,
    },
    /// The history belongs to a role that is not trusted.
    #[error(
        "Tidings' migration history in the schema {schema} belongs to {owner}, which is neither \
         tidings_owner nor the owner of the schema ({schema_owner}) nor your login role ({role}), \
         and would own the notifications. If {owner} installed Tidings here, log in as {owner}, or \
         transfer ownership first: tidings roles --schema={schema} --from={owner} | psql. If \
         not, remove it: drop table {}.tidings_schema_history;",
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
        "Tidings' migration history in the schema {schema} says version {version}, but \
         {missing}restore the whole schema from one backup or, if the history was put there by \
         mistake, remove it: drop table {}.tidings_schema_history;",
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
        "the schema {schema} already contains {what} that Tidings did not create, and Tidings \
         needs that name: set TIDINGS_SCHEMA (or --schema) to another schema, such as tidings"
    )]
    Foreign {
        schema: SchemaName,
        /// The kind and name of the object.
        what: String,
    },
    /// Another session is migrating, or holds the lock.
    #[error(
        "the advisory lock for migrations of the schema {schema} was not free for {} s. {holder}. \
         If that is another `tidings migrate`, wait for it to finish; any role can hold this lock, \
         so if it is anything else, end it{}",
        waited.as_secs(), holder.fix()
    )]
    Locked {
        schema: SchemaName,
        /// How long it was tried.
        waited: Duration,
        holder: Box<MigrationLockHolder>,
    },
    /// Long transactions of other sessions blocked the migration.
    #[error(
        "the schema {schema} was not migrated, or only in part: a table was locked for {} s, and \
         {holder}. Nothing was left half done, and the older bridges keep running: let that \
         transaction end{}, and run `tidings migrate` again, if needed with --lock-limit=10m",
         lock_limit.as_secs(),
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
        "the schema {schema} is at version {found} and no longer works with this bridge, which was \
         built for version {needed}: start the newer tidings"
    )]
    TooNew {
        schema: SchemaName,
        /// The version in the database.
        found: i32,
        /// The version of this bridge.
        needed: i32,
    },
    /// There is nothing to remove.
    #[error("Tidings is not installed in the schema {0}, so there is nothing to remove")]
    Nothing(SchemaName),
    /// An object that isn't ours depends on ours.
    #[error(
        "nothing was removed: objects that don't belong to Tidings depend on those in the schema \
         {schema} ({by}): remove or change them first"
    )]
    Used {
        schema: SchemaName,
        /// The dependent objects, as Postgres lists them.
        by: String,
    },
    /// Triggers on tables of applications would fail, and belong to other roles.
    #[error(
        "nothing was removed: new rows of {tables} are copied into notifications, so no row could \
         be inserted there any more, and {role} may not remove the triggers. Run `tidings adopt \
         --remove TABLE --apply` for each (for tidings_watch(): drop its triggers), or `tidings \
         uninstall` as a superuser"
    )]
    Adopted {
        /// The tables, with their owners.
        tables: String,
        /// The login role.
        role: String,
    },
    /// Another session holds a lock on a table for too long.
    #[error(
        "nothing was removed: other sessions are using the tables; stop the bridges and long \
         transactions (`tidings status` shows the longest), and try again"
    )]
    Busy,
    /// Logical replication writes to the table.
    #[error(
        "the subscription {subscription} writes to the table notifications in the schema {schema}: \
         its rows have the publisher's transaction ids, which mean nothing here, so rows would be \
         missed. To switch over to this database, stop the publisher's writers, wait until the \
         subscription has caught up, drop it with `drop subscription`, and start the bridge. To \
         keep the subscription, remove the table from the publication"
    )]
    Subscribed {
        schema: SchemaName,
        subscription: String,
    },
    /// The table holds rows restored from another cluster, and restamping them failed.
    #[error("the table contains rows with transaction ids of another cluster (it was dumped and \
             restored), which would never be delivered: run `tidings migrate` as the table's owner \
             ({})", ErrorChain(.0))]
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
    pub(super) fix: Option<String>,
}

impl MissingObject {
    /// The statement that gives an object of that name to the owner of the history.
    pub fn fix(&self) -> Option<&str> {
        self.fix.as_deref()
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
        match &self.fix {
            None => Ok(()),
            Some(fix) => write!(f, "if you trust that role, {fix} Otherwise "),
        }
    }
}
