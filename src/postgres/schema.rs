//! The database schema: its migrations, and whether it is compatible with this bridge.

mod concurrent_index;
mod error;
mod locks;
mod migration_lock;
mod name;
mod objects;
mod ownership;
mod plan;
mod removal;
mod roles;

use std::time::Duration;

use refinery::{Migration, Runner};
use tokio_postgres::{Client, error::SqlState, types::Type};
use tracing::{info, warn};

pub use self::name::quoted;
pub use self::{
    error::{MissingObject, SchemaError},
    locks::LockHolder,
    migration_lock::MigrationLockHolder,
    name::SchemaName,
    objects::names,
    plan::plan,
    removal::Removal,
    roles::roles,
};
pub(super) use self::{
    locks::{LOCK_PAUSE, LOCK_TIMEOUT},
    name::literal,
};
use self::{
    objects::{NAMES, ObjectKind},
    ownership::SchemaOwner,
};
use crate::postgres::connect::{self, DatabaseUrl, Queries};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Whether the role of the bridge has the privileges on a table that a feature needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Granted,
    Missing,
}

/// The table in which refinery records applied migrations. Its default name may be in use
/// by the application.
const HISTORY: &str = "tidings_schema_history";

/// The oldest Postgres with `xid8` and `pg_current_snapshot()`.
const OLDEST_SERVER: i32 = 13_00_00;

/// How long bridges that start at the same time wait for each other, and how long a
/// migration tries to acquire locks that other sessions hold.
pub const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// The same, if there is nothing to migrate: as long as another bridge's migration
/// usually takes.
const CURRENT_LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Prefix of migrations that remove something that older bridges need (expand and
/// contract, see `migrations/README.md`).
const CONTRACTING: &str = "contract_";

/// Whether the schema in the database is compatible with this bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is. Its version may be newer than the bridge.
    Serves,
    /// The schema doesn't exist, or migrations are missing.
    TooOld {
        /// The version in the database; `None` without any.
        found: Option<i32>,
    },
    /// A newer migration has removed something that this bridge needs.
    TooNew {
        /// The version in the database.
        found: i32,
    },
}

/// The schema version of this bridge.
pub fn version() -> i32 {
    embedded::migrations::runner()
        .get_migrations()
        .iter()
        .map(Migration::version)
        .max()
        .unwrap_or_default()
}

/// The migrations, with the schema filled in.
///
/// # Errors
///
/// None in practice: refinery has already parsed the file names.
fn runner(schema: &SchemaName) -> Result<Runner, refinery::Error> {
    let embedded = embedded::migrations::runner();
    let filled = embedded.get_migrations().iter().map(|migration| {
        let sql = schema.fill(migration.sql().unwrap_or_default());
        Migration::unapplied(&migration.to_string(), &sql)
    });
    let mut runner = Runner::new(&filled.collect::<Result<Vec<_>, _>>()?);
    runner.set_migration_table_name(schema.qualified(HISTORY));
    // A newer bridge may have migrated already; `fit` has found that compatible. The
    // files of earlier releases did not name the schema, so their checksums differ.
    Ok(runner.set_abort_missing(false).set_abort_divergent(false))
}

/// Compares the schema with what this bridge needs. Only reads the migration history.
///
/// # Errors
///
/// [`SchemaError`], also if another object has the history's name.
pub async fn fit(client: &impl Queries, schema: &SchemaName) -> Result<Fit, SchemaError> {
    let history = schema.qualified(HISTORY);
    let exists: bool = client
        .query_typed_one(
            include_str!("../../sql/relation_exists.sql"),
            &[(&history, Type::TEXT)],
        )
        .await?
        .try_get(0)?;
    if !exists {
        return Ok(Fit::TooOld { found: None });
    }
    let query = schema.fill(include_str!("../../sql/applied_migrations.sql"));
    // An unnamed statement, because a pooler may lend the session.
    let applied = client
        .query_typed(&query, &[])
        .await
        .map_err(|error| match error.code() {
            Some(&SqlState::UNDEFINED_COLUMN | &SqlState::WRONG_OBJECT_TYPE) => {
                SchemaError::Foreign {
                    schema: schema.clone(),
                    what: format!("a relation {HISTORY}"),
                }
            }
            _ => error.into(),
        })?;
    let needed = version();
    let mut found = None;
    for row in &applied {
        let (version, name): (i32, &str) = (row.try_get(0)?, row.try_get(1)?);
        if version > needed && name.starts_with(CONTRACTING) {
            return Ok(Fit::TooNew { found: version });
        }
        found = Some(version);
    }
    Ok(if found >= Some(needed) {
        Fit::Serves
    } else {
        Fit::TooOld { found }
    })
}

/// The version of the schema, if this role may read it.
pub async fn found(client: &impl Queries, schema: &SchemaName) -> Option<i32> {
    let query = schema.fill(include_str!("../../sql/schema_version.sql"));
    let row = client.query_typed_one(&query, &[]).await.ok()?;
    row.try_get(0).ok().flatten()
}

/// Migrates the schema to this bridge's version; creates it if necessary.
///
/// Several bridges can run this at once: refinery takes no lock, so this holds an
/// advisory lock meanwhile. Applications can keep writing: they never wait more than two
/// seconds for a lock that the migration can't get.
///
/// # Errors
///
/// [`SchemaError`], also if other sessions hold locks for longer than `lock_limit`. A
/// migration that fails leaves nothing behind.
pub async fn migrate(
    url: &DatabaseUrl,
    schema: &SchemaName,
    lock_limit: Duration,
) -> Result<(), SchemaError> {
    let (mut client, _driver) = connect::connect_pinned(url).await?;
    check_server(&client).await?;
    let owner = SchemaOwner::find(&client, schema).await?;
    create_schema(&client, schema, &owner).await?;
    owner.act(&client).await?;
    // Any role can hold the lock, and that must not prevent using an up-to-date schema:
    // `tidings migrate` often runs before each start of a bridge.
    let is_current = matches!(fit(&client, schema).await?, Fit::Serves);
    let limit = if is_current {
        lock_limit.min(CURRENT_LOCK_LIMIT)
    } else {
        lock_limit
    };
    // Held until the session ends.
    match migration_lock::take(&client, schema, limit).await {
        Err(error @ SchemaError::Locked { .. }) if is_current => {
            warn!(
                schema = %schema,
                "the schema {schema} is up to date, but the groups' privileges were not renewed: \
                 {error}"
            );
            return restamp_restored(&client, schema).await;
        }
        taken => taken?,
    }
    owner.act(&client).await?;
    let fit = fit(&client, schema).await?;
    refuse_incomplete(&client, schema, fit).await?;
    match fit {
        Fit::Serves => info!(schema = %schema, "the schema {schema} is up to date"),
        Fit::TooNew { found } => {
            return Err(SchemaError::TooNew {
                schema: schema.clone(),
                found,
                needed: version(),
            });
        }
        Fit::TooOld { found } => {
            owner.check(&client, schema).await?;
            refuse_foreign(&client, schema, found).await?;
            locks::apply(&mut client, schema, lock_limit).await?;
        }
    }
    owner.grant(&client, schema).await?;
    restamp_restored(&client, schema).await
}

/// The check when `serve` starts. Migrates if the schema is too old and `may_migrate` is
/// set.
pub async fn prepare(
    url: &DatabaseUrl,
    schema: &SchemaName,
    may_migrate: bool,
) -> Result<(), SchemaError> {
    let (client, _driver) = connect::connect_pinned(url).await?;
    check_server(&client).await?;
    match fit(&client, schema).await? {
        Fit::Serves => {
            refuse_subscription(&client, schema).await?;
            connect::settle(&client).await?;
            restamp_restored(&client, schema).await
        }
        Fit::TooOld { .. } if may_migrate => migrate(url, schema, LOCK_LIMIT).await,
        Fit::TooOld { found } => Err(SchemaError::TooOld {
            schema: schema.clone(),
            found: found.map_or("has no Tidings installed".to_owned(), |found| {
                format!("is at version {found}")
            }),
            needed: version(),
            may_migrate,
        }),
        Fit::TooNew { found } => Err(SchemaError::TooNew {
            schema: schema.clone(),
            found,
            needed: version(),
        }),
    }
}

/// Checks whether the server and the database are suitable.
///
/// # Errors
///
/// [`SchemaError`], also on a standby.
pub async fn check_server(client: &impl Queries) -> Result<(), SchemaError> {
    let row = client
        .query_typed_one(include_str!("../../sql/server.sql"), &[])
        .await?;
    if row.try_get("standby")? {
        return Err(SchemaError::Standby);
    }
    if row.try_get::<_, i32>("version_number")? < OLDEST_SERVER {
        return Err(SchemaError::Server(row.try_get("version")?));
    }
    match row.try_get("encoding")? {
        "UTF8" => Ok(()),
        other => Err(SchemaError::Encoding(other.to_owned())),
    }
}

async fn create_schema(
    client: &Client,
    schema: &SchemaName,
    owner: &SchemaOwner,
) -> Result<(), SchemaError> {
    let exists = include_str!("../../sql/schema_exists.sql");
    let row = client.query_one(exists, &[&schema.name()]).await?;
    if row.try_get(0)? {
        return Ok(());
    }
    let role = match owner {
        SchemaOwner::Reachable(owner) => owner.clone(),
        SchemaOwner::Other(_) | SchemaOwner::Nobody => row.try_get(1)?,
    };
    let create = format!(
        "create schema if not exists {} authorization {}",
        schema.quoted(),
        quoted(&role)
    );
    match client.batch_execute(&create).await {
        Ok(()) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            Err(SchemaError::NoSchema {
                schema: schema.clone(),
                role,
            })
        }
        // Another bridge created it at the same time.
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Rejects a history that lists migrations whose objects are missing or belong to another
/// role: it was restored without them, or created by someone else.
pub(crate) async fn refuse_incomplete(
    client: &impl Queries,
    schema: &SchemaName,
    fit: Fit,
) -> Result<(), SchemaError> {
    let found = match fit {
        Fit::Serves => version(),
        Fit::TooOld { found: Some(found) } => found,
        Fit::TooOld { found: None } | Fit::TooNew { .. } => return Ok(()),
    };
    let names = |kind| {
        let made = NAMES
            .iter()
            .filter(move |&&(version, of, _)| version <= found && of == kind);
        made.map(|&(.., name)| name).collect::<Vec<_>>()
    };
    let query = include_str!("../../sql/missing_object.sql");
    let (relations, functions) = (names(ObjectKind::Relation), names(ObjectKind::Function));
    let missing = client
        .query_typed(
            query,
            &[
                (&schema.name(), Type::TEXT),
                (&relations, Type::TEXT_ARRAY),
                (&functions, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    match missing.first() {
        None => Ok(()),
        Some(row) => Err(SchemaError::Incomplete {
            schema: schema.clone(),
            version: found,
            missing: Box::new(MissingObject {
                owner: row.try_get("owner")?,
                name: row.try_get("name")?,
                owners: row.try_get("owners")?,
                fix: row.try_get("fix")?,
            }),
        }),
    }
}

/// Returns an error if an object that is not ours has a name that a pending migration
/// needs.
async fn refuse_foreign(
    client: &Client,
    schema: &SchemaName,
    found: Option<i32>,
) -> Result<(), SchemaError> {
    let pending = names().filter(|&(version, _)| Some(version) > found);
    let pending = pending.map(|(_, name)| name).collect::<Vec<_>>();
    let foreign = include_str!("../../sql/foreign_object.sql");
    match client
        .query_opt(foreign, &[&schema.name(), &pending])
        .await?
    {
        None => Ok(()),
        Some(row) => Err(SchemaError::Foreign {
            schema: schema.clone(),
            what: row.try_get("what")?,
        }),
    }
}

/// Returns an error if logical replication fills the table.
async fn refuse_subscription(client: &Client, schema: &SchemaName) -> Result<(), SchemaError> {
    let sql = include_str!("../../sql/subscription.sql");
    let table = schema.qualified("notifications");
    match client.query_opt(sql, &[&table]).await? {
        None => Ok(()),
        Some(row) => Err(SchemaError::Subscribed {
            schema: schema.clone(),
            subscription: row.try_get(0)?,
        }),
    }
}

/// Restamps rows that were restored from a dump of another cluster. If their transaction
/// ids lie in this cluster's future, no reader would see them until the cluster gets
/// there; they get the id of the transaction that finds them.
async fn restamp_restored(client: &Client, schema: &SchemaName) -> Result<(), SchemaError> {
    let restored = schema.fill(include_str!("../../sql/has_restored_rows.sql"));
    let row = client.query_one(&restored, &[]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(());
    }
    SchemaOwner::find(client, schema).await?.act(client).await?;
    let restamp = schema.fill(include_str!("../../sql/restamp_restored_rows.sql"));
    let mut rows = 0;
    loop {
        match client.execute(&restamp, &[]).await {
            Ok(0) => break,
            Ok(some) => rows += some,
            Err(error) => return Err(SchemaError::Restored(error)),
        }
    }
    info!(rows, "restamped {rows} rows of another cluster");
    Ok(())
}
