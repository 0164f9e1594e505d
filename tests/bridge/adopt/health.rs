//! What `check` finds, and what `uninstall` removes.

use serde_json::Value;

use super::{adopt, application, copied, with_notes};
use crate::{
    command_line::run,
    support::{bridge::Bridge, database::Database},
};

const NOTES: [&str; 4] = [
    "app.notes",
    "--user=user_id",
    "--text=text",
    "--where=not sent",
];

/// The findings about adopted tables.
async fn findings(database: &Database) -> Vec<Value> {
    // The bridge's role may not use the schema of the application, the superuser may.
    let report = run(&database.superuser(), &["check", "--json"])
        .await
        .json();
    let findings = report["findings"].as_array().expect("findings").clone();
    let is_of_adopted = |finding: &Value| finding["topic"] == "adopted-table";
    findings.into_iter().filter(is_of_adopted).collect()
}

/// Breaks the adopted table, finds what is wrong, and lets `mend` or the statement of the finding
/// repair it.
async fn found(database: &Database, breaking: &str, expected: &str, mend: Option<&str>) {
    database.superuser().execute(breaking).await;
    let found = findings(database).await;
    assert_eq!(found.len(), 1, "{breaking}: {found:?}");
    let text = found[0]["found"].as_str().expect("text");
    assert!(text.contains(expected), "{breaking}: {text}");
    assert_eq!(found[0]["kind"], "problem");
    let fix = match mend {
        Some(mend) => {
            let advice = found[0]["fix"]["advice"].as_str().expect("advice");
            assert!(advice.contains("tidings adopt"), "{advice}");
            mend.to_owned()
        }
        None => found[0]["fix"]["sql"].as_str().expect("SQL").to_owned(),
    };
    database.superuser().execute(&fix).await;
    adopt(database, &NOTES).await;
    assert_eq!(findings(database).await, [] as [Value; 0], "{breaking}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_lists_adopted_tables_and_when_marks_were_last_looked_for() {
    let database = with_notes().await;
    let said = run(&database, &["status", "--json"]).await.json();
    assert_eq!(said["adopted"], serde_json::json!([]));
    adopt(&database, &NOTES).await;
    let said = run(&database, &["status", "--json"]).await.json();
    let copied = serde_json::json!({ "table": "app.notes", "marks": false, "swept_seconds": null });
    assert_eq!(said["adopted"], serde_json::json!([copied]));
    let marking = [&["adopt"], &NOTES[..], &["--mark=sent", "--apply"]].concat();
    run(&database.superuser(), &marking).await.well();
    let shown = async || {
        run(&database.as_role("dashboard"), &["status"])
            .await
            .well()
    };
    assert!(shown().await.contains("app.notes, rows will be marked"));
    let _bridge = Bridge::start(&database).await;
    let swept = "select swept_at > '-infinity' from public.tidings_adopted";
    database.until(swept).await;
    assert!(
        shown()
            .await
            .contains("app.notes, rows are marked there, last checked ")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_an_adopted_table_is_found() {
    let database = with_notes().await;
    adopt(&database, &NOTES).await;
    assert_eq!(findings(&database).await, [] as [Value; 0]);
    run(&database, &["check"]).await.well();
    for (breaking, expected, mend) in [
        (
            "drop trigger tidings_copy on app.notes",
            "the trigger tidings_copy on app.notes is missing",
            Some(""),
        ),
        (
            "alter table app.notes disable trigger tidings_copy",
            "is disabled",
            None,
        ),
        (
            "alter table app.notes enable replica trigger tidings_copy",
            "fires only in replica mode",
            None,
        ),
        (
            "alter function app.tidings_copy_notes() security invoker",
            "doesn't run with the privileges of the table's owner",
            Some(""),
        ),
        (
            "alter function app.tidings_copy_notes() owner to tidings_owner",
            "doesn't run with the privileges of the table's owner",
            Some("alter function app.tidings_copy_notes() owner to application"),
        ),
        (
            "create or replace function app.tidings_copy_notes() returns trigger language plpgsql \
             security definer as 'begin return null; end'",
            "doesn't insert rows of app.notes into notifications",
            Some(""),
        ),
        (
            "alter table app.notes rename text to body",
            "no row can be inserted into app.notes, because app.tidings_copy_notes() fails: column \
             \"text\" does not exist",
            Some("alter table app.notes rename body to text"),
        ),
        (
            "alter table app.notes drop sent",
            "column \"sent\" does not exist",
            Some("alter table app.notes add sent boolean not null default false"),
        ),
    ] {
        found(&database, breaking, expected, mend).await;
    }
    // The owner is no writer any more.
    let superuser = database.superuser();
    superuser
        .execute(
            "do $$ begin create role hermit; \
             exception when duplicate_object or unique_violation then null; end $$; \
             grant usage, create on schema app to hermit; alter table app.notes owner to hermit; \
             alter function app.tidings_copy_notes() owner to hermit",
        )
        .await;
    let found = findings(&database).await;
    let text = found[0]["found"].as_str().expect("text");
    assert!(
        text.contains("hermit, who owns the adopted table app.notes"),
        "{text}"
    );
    assert_eq!(
        found[0]["fix"]["sql"],
        "grant tidings_writer to \"hermit\";"
    );
    // The table is gone.
    superuser.execute("drop table app.notes").await;
    let found = findings(&database).await;
    let text = found[0]["found"].as_str().expect("text");
    assert!(text.contains("app.notes doesn't exist"), "{text}");
    let command = found[0]["fix"]["command"].as_str().expect("a command");
    assert_eq!(
        command,
        "tidings adopt --remove 'app.notes' --apply --schema 'public'"
    );
    run(&superuser, &["adopt", "--remove", "app.notes", "--apply"])
        .await
        .well();
    assert_eq!(findings(&database).await, [] as [Value; 0]);
}

/// Its INSERTs would fail.
#[tokio::test(flavor = "multi_thread")]
async fn uninstall_takes_the_triggers_along_or_says_who_can() {
    let database = with_notes().await;
    adopt(&database, &NOTES).await;
    let insert = "insert into app.notes (user_id, text) values (7, 'x')";
    database.execute(insert).await;
    // The owner of Tidings can't act as the application.
    let said = run(&database.owner(), &["uninstall", "--yes"])
        .await
        .badly();
    for expected in [
        "nothing was removed",
        "app.notes (which belongs to application)",
        "--remove",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    database.execute(insert).await;
    assert_eq!(copied(&database).await.len(), 2);
    let said = run(&database.superuser(), &["uninstall", "--yes"])
        .await
        .well();
    for expected in [
        "trigger tidings_copy on app.notes",
        "function app.tidings_copy_notes()",
    ] {
        assert!(said.contains(expected), "{said}");
    }
    database.execute(insert).await;
    let left = "select count(*) from pg_proc where proname like 'tidings\\_%'";
    assert_eq!(database.superuser().ids(left).await, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_application_has_removed_it_uninstall_has_nothing_to_do() {
    let database = with_notes().await;
    adopt(&database, &NOTES).await;
    run(
        &application(&database),
        &["adopt", "--remove", "app.notes", "--apply"],
    )
    .await
    .well();
    run(&database.owner(), &["uninstall", "--yes"]).await.well();
}
