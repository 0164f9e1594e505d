//! `migrate --dry-run` prints what would run, and runs nothing.

use super::run;
use crate::support::database::Database;

#[tokio::test(flavor = "multi_thread")]
async fn what_it_prints_is_what_migrate_does() {
    let database = Database::empty().await;
    // A role without the privilege to change anything may run it.
    let asked = run(&database, &["migrate", "--dry-run"]).await.well();
    assert!(asked.contains("bridge could not run it"), "{asked}");
    let script = run(&database.owner(), &["migrate", "--dry-run"])
        .await
        .well();
    for expected in [
        "logged in as migrator, acting as tidings_owner",
        "set search_path to pg_catalog, pg_temp;",
        "-- V1__create_notifications",
        "create table \"public\".notifications",
    ] {
        assert!(script.contains(expected), "{expected}: {script}");
    }
    let nothing = "select to_regclass('notifications') is null";
    database.until(nothing).await;

    let sql: String = script
        .lines()
        .filter(|line| !line.starts_with('\\'))
        .map(|line| format!("{line}\n"))
        .collect();
    database.owner().execute(&sql).await;
    let migrated = Database::migrated().await;
    assert_eq!(history(&database).await, history(&migrated).await);
    let asked = run(&database, &["migrate", "--dry-run"]).await.well();
    assert_eq!(
        asked,
        "-- Nothing to do: the schema public is up to date.\n"
    );
    // `migrate` accepts the result as its own work.
    run(&database.owner(), &["migrate"]).await.well();
    run(&database, &["check"]).await.well();
}

async fn history(database: &Database) -> Vec<(i32, String, String)> {
    let client = database.owner().connect().await;
    let query = "select version, name, checksum from tidings_schema_history order by version";
    let rows = client.query(query, &[]).await.expect(query);
    rows.iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect()
}
