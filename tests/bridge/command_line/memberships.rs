//! `check` finds what makes reading memberships slow or impossible, and whose changes bridges
//! don't learn of.

use serde_json::Value;

use super::{
    Said, run,
    state::{findings, found_and_fixed, hint},
};
use crate::support::database::Database;

async fn check(database: &Database, name: &str) -> Said {
    let setting = format!("--memberships={name}");
    run(database, &["check", "--json", &setting]).await
}

/// The only problem, which must be about memberships and have this text.
fn problem(said: &Said, text: &str) -> Value {
    let found = findings(said);
    let [finding] = &found[..] else {
        panic!("not one problem: {said:?}")
    };
    assert_eq!(finding["topic"], "memberships", "{said:?}");
    let found = finding["found"].as_str().expect("a text");
    assert!(found.contains(text), "{found}");
    finding.clone()
}

async fn with_members(view: &str) -> Database {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(&format!(
            "create schema \"the App\"; \
             create table \"the App\".\"Members\" (user_id bigint, project bigint); \
             insert into \"the App\".\"Members\" select n, n % 100 from generate_series(1, 20000) as n; \
             create table \"the App\".plans (user_id bigint primary key, plan text); \
             insert into \"the App\".plans select n, 'x' from generate_series(1, 20000) as n; \
             create view \"the App\".memberships as {view}; \
             grant usage on schema \"the App\" to tidings_bridge; \
             grant select on \"the App\".memberships to tidings_bridge"
        ))
        .await;
    database
}

const NAME: &str = "\"the App\".memberships";

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_index_is_named_and_created_by_the_fix() {
    let database = with_members(
        "select user_id, 'project:' || project as topic, null::pg_snapshot as since \
           from \"the App\".\"Members\" \
         union all select user_id, 'plan:' || plan, null from \"the App\".plans",
    )
    .await;
    problem(&check(&database, NAME).await, "Postgres reads all of");
    // The index of a unique constraint in the other order doesn't help.
    database
        .superuser()
        .execute("alter table \"the App\".\"Members\" add unique (project, user_id)")
        .await;
    let said = check(&database, NAME).await;
    let finding = problem(&said, "Postgres reads all of \"the App\".\"Members\"");
    let fix = finding["fix"]["sql"].as_str().expect("a statement");
    assert_eq!(
        fix,
        "create index concurrently on \"the App\".\"Members\" (user_id);"
    );
    database.superuser().execute(fix).await;
    // What remains are hints: nothing tells bridges of changes.
    let said = check(&database, NAME).await;
    assert_eq!(findings(&said), Vec::<Value>::new());
    for table in ["\"the App\".\"Members\"", "\"the App\".plans"] {
        let text = format!("no trigger tells bridges when {table} changes");
        let fix = hint(&said, &text)["fix"]["sql"].clone();
        let fix = fix.as_str().expect("a statement");
        database.superuser().execute(fix).await;
    }
    let said = check(&database, NAME).await;
    assert_eq!(said.code, Some(0));
    assert!(!said.out.contains("no trigger tells"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cast_that_keeps_an_index_from_being_used_is_explained() {
    let database = with_members(
        "select user_id::text as user_id, 'plan:' || plan as topic, null::pg_snapshot as since \
         from \"the App\".plans",
    )
    .await;
    let said = check(&database, NAME).await;
    let finding = problem(&said, "reads all of \"the App\".\"plans\"");
    let advice = finding["fix"]["advice"].as_str().expect("an advice");
    assert!(advice.contains("leave the user's column in its own type"));
    // A table of a few rows needs no index.
    database
        .superuser()
        .execute("truncate \"the App\".plans; analyze \"the App\".plans")
        .await;
    let said = check(&database, NAME).await;
    assert_eq!(findings(&said), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relation_that_cannot_be_read_is_found_with_what_to_grant() {
    let view = "select 1 as user_id, 'x' as topic, null::pg_snapshot as since";
    let database = with_members(view).await;
    problem(&check(&database, "app.nothing").await, "doesn't exist");
    let superuser = database.superuser();
    superuser
        .execute("revoke select on \"the App\".memberships from tidings_bridge")
        .await;
    let said = check(&database, NAME).await;
    let finding = problem(&said, "may not read \"the App\".memberships");
    let fix = finding["fix"]["sql"].as_str().expect("a statement");
    superuser.execute(fix).await;
    assert_eq!(findings(&check(&database, NAME).await), Vec::<Value>::new());
    // Its owner may not read its tables.
    superuser
        .execute(
            "create role view_owner_of_test; grant usage on schema \"the App\" to view_owner_of_test; \
             create or replace view \"the App\".memberships as \
               select user_id::int, 'x' as topic, null::pg_snapshot as since from \"the App\".plans; \
             alter view \"the App\".memberships owner to view_owner_of_test",
        )
        .await;
    let said = check(&database, NAME).await;
    problem(&said, "permission denied for table plans");
    superuser
        .execute("drop owned by view_owner_of_test; drop role view_owner_of_test")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_tables_whose_triggers_are_incomplete_are_found_and_fixed() {
    let database =
        with_members("select 1 as user_id, 'x' as topic, null::pg_snapshot as since").await;
    database
        .superuser()
        .execute(
            "alter table \"the App\".\"Members\" add unique (user_id, project); \
             select tidings_watch('\"the App\".\"Members\"', 'user_id', 'project', 'it''s: (x) '); \
             select tidings_watch('\"the App\".plans', 'user_id')",
        )
        .await;
    for (table, breaking, missing) in [
        (
            "\"Members\"",
            "drop trigger tidings_watch_delete on %",
            "tidings_watch_delete",
        ),
        (
            "\"Members\"",
            "alter table % disable trigger tidings_watch_insert",
            "tidings_watch_insert",
        ),
        (
            "plans",
            "alter table % disable trigger user; alter table % enable trigger user",
            "tidings_watch_insert, tidings_watch_update, tidings_watch_delete, tidings_watch_truncate",
        ),
    ] {
        let table = format!("\"the App\".{table}");
        database
            .superuser()
            .execute(&breaking.replace('%', &table))
            .await;
        let plural = if missing.contains(',') { "s" } else { "" };
        let text = format!("the trigger{plural} {missing} on {table} can't fire in every session");
        found_and_fixed(&database, &[], "memberships", &text).await;
    }
    // The memberships are the same as before.
    let count = "select count(*) from topic_subscriptions where topic like 'it''s: (x) %'";
    assert_eq!(database.owner().ids(count).await, [20_000]);
}
