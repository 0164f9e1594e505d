//! `tidings migrate --dry-run`: prints what a migration would do, as a psql script.

use std::fmt::Write;

use refinery::Migration;
use tokio_postgres::Client;

use super::{
    Fit, HISTORY, SchemaError, SchemaName, check_server, concurrent_index, fit,
    locks::LOCK_TIMEOUT,
    name::{literal, quoted},
    ownership::SchemaOwner,
    refuse_foreign, runner, version,
};
use crate::{
    postgres::connect::{self, DatabaseUrl},
    runtime::error_chain::ErrorChain,
};

/// Returns the SQL that `migrate` would run, in the same order. Only reads.
///
/// Running the script has the same result as running `migrate`.
///
/// # Errors
///
/// [`SchemaError`], for problems that would keep `migrate` from starting. If this role
/// may not migrate, the script says so in a comment.
pub async fn plan(url: &DatabaseUrl, schema: &SchemaName) -> Result<String, SchemaError> {
    let (client, _driver) = connect::connect_pinned(url).await?;
    check_server(&client).await?;
    let found = match fit(&client, schema).await? {
        Fit::Serves => {
            return Ok(format!(
                "-- Nothing to do: the schema {schema} is up to date.\n"
            ));
        }
        Fit::TooNew { found } => {
            return Err(SchemaError::TooNew {
                schema: schema.clone(),
                found,
                needed: version(),
            });
        }
        Fit::TooOld { found } => found,
    };
    refuse_foreign(&client, schema, found).await?;
    let owner = SchemaOwner::find(&client, schema).await?;
    let mut script = String::new();
    // Writing to a String never fails.
    let _ = head(&mut script, &client, schema, &owner).await?;
    let runner = runner(schema)?;
    let mut pending: Vec<_> = runner
        .get_migrations()
        .iter()
        .filter(|migration| Some(migration.version()) > found)
        .collect();
    // refinery orders them by file name, with the tenth before the second.
    pending.sort_by_key(|migration| migration.version());
    for migration in pending {
        let _ = step(&mut script, schema, migration);
        let index = concurrent_index::TOPICS;
        // On the empty table of a new installation, that migration creates it.
        if migration.version() == index.after && found.is_some() {
            let create = index.create(schema);
            let _ = writeln!(
                script,
                "-- Writers wait neither for this nor behind it. It waits for transactions that are \
                 open, and must not run in one. If it fails: drop index concurrently, and again.\n\
                 set lock_timeout = 0;\n{};\nset lock_timeout = '{LOCK_TIMEOUT}';\n",
                create.trim_end()
            );
        }
    }
    let grants = schema.fill(include_str!("../../../sql/grants.sql"));
    let _ = write!(
        script,
        "-- The privileges of the groups.\nbegin;\n{grants}\ncommit;\n"
    );
    Ok(script)
}

async fn head(
    script: &mut String,
    client: &Client,
    schema: &SchemaName,
    owner: &SchemaOwner,
) -> Result<std::fmt::Result, SchemaError> {
    let query = include_str!("../../../sql/schema_exists.sql");
    let row = client.query_one(query, &[&schema.name()]).await?;
    let (role, exists): (String, bool) = (row.try_get("role")?, row.try_get("does")?);
    let acting = match owner {
        SchemaOwner::Reachable(owner) => owner,
        SchemaOwner::Other(_) | SchemaOwner::Nobody => &role,
    };
    let may = if exists {
        owner.check(client, schema).await.err()
    } else {
        None
    };
    let write = || {
        writeln!(
            script,
            "-- What `tidings migrate` would run in the schema {schema}: logged in as {role}, \
             acting as {acting}."
        )?;
        if let Some(error) = may {
            let error = ErrorChain(&error);
            writeln!(script, "-- {role} could not run it: {error}")?;
        }
        writeln!(script, "\\set ON_ERROR_STOP on\n")?;
        if !exists {
            let (schema, acting) = (schema.quoted(), quoted(acting));
            writeln!(
                script,
                "create schema if not exists {schema} authorization {acting};"
            )?;
        }
        writeln!(script, "set role {};", quoted(acting))?;
        writeln!(script, "set search_path to pg_catalog, pg_temp;")?;
        writeln!(
            script,
            "-- Writers queue behind a session that waits for a table. If this is too short, start \
             again.\n\
             set lock_timeout = '{LOCK_TIMEOUT}';\n"
        )?;
        writeln!(
            script,
            "create table if not exists {} (version int4 primary key, name varchar(255), \
             applied_on varchar(255), checksum varchar(255));\n",
            schema.qualified(HISTORY)
        )
    };
    Ok(write())
}

/// Writes the migration and its entry in the history in one transaction, as refinery
/// does.
fn step(script: &mut String, schema: &SchemaName, migration: &Migration) -> std::fmt::Result {
    writeln!(script, "-- {migration}")?;
    writeln!(script, "begin;")?;
    writeln!(script, "{}", migration.sql().unwrap_or_default().trim_end())?;
    writeln!(
        script,
        "insert into {} (version, name, applied_on, checksum) values ({}, {}, \
         to_char(now() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '{}');",
        schema.qualified(HISTORY),
        migration.version(),
        literal(migration.name()),
        migration.checksum()
    )?;
    writeln!(script, "commit;\n")
}
