//! `check` and `status` find what hides rows from bridges; the statement that they print fixes it.

use super::state::{both_are_content, both_find, found_and_fixed};
use crate::support::database::Database;

/// Our tables that the bridge's role reads directly.
const READ_BY_BRIDGES: [&str; 5] = [
    "notifications",
    "stream_tickets",
    "tidings_drained",
    "tidings_reopened",
    "tidings_incarnation",
];

#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_is_found_for_every_table_and_fixed() {
    let database = Database::migrated().await;
    both_are_content(&database, &[]).await;
    for table in READ_BY_BRIDGES {
        let enable = format!("alter table {table} enable row level security");
        database.superuser().execute(&enable).await;
        let text = format!("row-level security on public.{table} applies to bridge");
        found_and_fixed(&database, &[], "hidden-rows", &text).await;
    }
}

/// The owner, which the functions run as, is exempt unless it is forced.
#[tokio::test(flavor = "multi_thread")]
async fn forced_row_level_security_is_found_for_every_table_and_fixed() {
    let database = Database::migrated().await;
    let tables = "select relname::text from pg_class \
                  where relnamespace = 'public'::regnamespace and relkind = 'r' \
                  and relname <> 'tidings_schema_history'";
    let client = database.superuser().connect().await;
    let tables = client.query(tables, &[]).await.expect("tables");
    assert!(tables.len() >= 9, "{}", tables.len());
    for row in tables {
        let table: String = row.get(0);
        let force =
            format!("alter table {table} enable row level security, force row level security");
        database.superuser().execute(&force).await;
        let text = format!("row-level security on public.{table} applies to");
        found_and_fixed(&database, &[], "hidden-rows", &text).await;
    }
}

/// Regardless of the role that runs the command: what counts is the bridges' roles.
#[tokio::test(flavor = "multi_thread")]
async fn what_hides_rows_from_the_bridge_is_found_by_a_superuser_too() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "alter table notifications enable row level security; \
             create policy bridges on notifications to tidings_bridge using (true)",
        )
        .await;
    let text = "row-level security on public.notifications applies to bridge";
    found_and_fixed(&database.superuser(), &[], "hidden-rows", text).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_place_of_the_table_is_found_and_the_table_put_back() {
    let database = Database::migrated().await;
    database
        .owner()
        .execute(
            "alter table notifications rename to notifications_kept; \
             create view notifications as select * from notifications_kept where user_id <> 'alice'; \
             grant select, update on notifications to tidings_bridge",
        )
        .await;
    let text = "public.notifications is a view";
    let fixes = both_find(&database, &[], "hidden-rows", text).await;
    for fix in fixes.iter().filter(|fix| fix.contains(" rename to ")) {
        database.superuser().execute(fix).await;
    }
    both_are_content(&database, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_rewrite_what_is_written_are_found_and_fixed() {
    let database = Database::migrated().await;
    for rule in [
        "on update to notifications do instead nothing",
        "on insert to notifications do instead nothing",
    ] {
        let create = format!("create rule quiet as {rule}");
        database.superuser().execute(&create).await;
        let text = "the rule quiet on public.notifications";
        found_and_fixed(&database, &[], "hidden-rows", text).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_of_crashes_that_survives_them_is_found_and_fixed() {
    let database = Database::migrated().await;
    let set = "alter table tidings_incarnation set logged";
    database.superuser().execute(set).await;
    let text = "public.tidings_incarnation is not UNLOGGED";
    found_and_fixed(&database, &[], "hidden-rows", text).await;
}
