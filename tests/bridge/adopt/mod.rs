//! `tidings adopt`, from the command line to the row in notifications.

mod health;
mod input;
mod marks;
mod rights;
mod rows;

use tokio_postgres::Client;

use crate::{
    command_line::run,
    support::database::{Database, LOGINS},
};

/// A database with Tidings, and a schema of the application.
async fn with_app() -> Database {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute("create schema app authorization application")
        .await;
    database
}

/// The application, which owns its tables and is a writer of Tidings.
fn application(database: &Database) -> Database {
    assert!(LOGINS[2].1.contains("tidings_writer"));
    database.as_role("application")
}

const NOTES: &str = "create table app.notes ( \
                       id bigint generated always as identity primary key, \
                       user_id bigint, \
                       text text, \
                       kind text, \
                       sent boolean not null default false \
                     )";

/// A database with the application's table `app.notes`.
async fn with_notes() -> Database {
    let database = with_app().await;
    database.execute(NOTES).await;
    database
}

/// Adopts a table as the application.
async fn adopt(database: &Database, arguments: &[&str]) {
    let arguments = [&["adopt"], arguments, &["--apply"]].concat();
    run(&application(database), &arguments).await.well();
}

/// What was copied: user, text, event and ref, in the order of ids, separated by `|`.
async fn copied(database: &Database) -> Vec<String> {
    let client = database.owner().connect().await;
    rows(
        &client,
        "select concat_ws('|', user_id, text, coalesce(event, '-'), coalesce(ref, '-')) \
         from public.notifications order by id",
    )
    .await
}

async fn rows(client: &Client, query: &str) -> Vec<String> {
    let rows = client.query(query, &[]).await.expect(query);
    rows.iter().map(|row| row.get(0)).collect()
}
