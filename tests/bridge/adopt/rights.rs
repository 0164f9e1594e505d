//! Nobody gains a privilege by an adopted table, and nobody loses one.

use super::{adopt, application, copied, with_notes};
use crate::{
    command_line::run,
    support::database::{Database, start_cluster},
};

const ADOPT: [&str; 5] = [
    "adopt",
    "app.notes",
    "--user=user_id",
    "--text=text",
    "--where=not sent",
];

fn applied() -> Vec<&'static str> {
    [&ADOPT[..], &["--apply"]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_only_insert_there_goes_on_and_gains_nothing() {
    let database = with_notes().await;
    adopt(&database, &ADOPT[1..]).await;
    database
        .superuser()
        .execute(
            "do $$ begin create role clerk login; \
             exception when duplicate_object or unique_violation then null; end $$; \
             grant usage on schema app to clerk; grant insert on app.notes to clerk",
        )
        .await;
    let clerk = database.as_role("clerk");
    clerk
        .execute("insert into app.notes (user_id, text) values (7, 'by a clerk')")
        .await;
    assert_eq!(copied(&database).await, ["7|by a clerk|-|notes:1"]);
    let client = clerk.connect().await;
    for refused in [
        "insert into notifications (user_id, text) values ('7', 'x')",
        "select app.tidings_copy_notes()",
        "select tidings_adopt('app.notes', 'x:', null)",
        "select tidings_unadopt('app', 'notes')",
        "select * from tidings_adopted",
    ] {
        client.batch_execute(refused).await.expect_err(refused);
    }
    // A temporary table, or a function of the caller's, takes nobody's place.
    client
        .batch_execute(
            "create temporary table notifications (user_id text, text text, event text, ref text); \
             create temporary table added (user_id text); \
             insert into app.notes (user_id, text) values (8, 'again')",
        )
        .await
        .expect("an insert");
    assert_eq!(copied(&database).await.len(), 2);
    // Another writer can't change what is adopted.
    database
        .superuser()
        .execute(
            "do $$ begin create role rival login in role tidings_writer; \
             exception when duplicate_object or unique_violation then null; end $$; \
             grant usage on schema app to rival",
        )
        .await;
    let rival = database.as_role("rival");
    let client = rival.connect().await;
    for refused in [
        "select tidings_adopt('app.notes', 'x:', null)",
        "select tidings_unadopt('app', 'notes')",
        "delete from tidings_adopted",
        "select tidings_mark_adopted('app', 'notes', null, 1)",
    ] {
        let error = client.batch_execute(refused).await.expect_err(refused);
        assert_eq!(
            error.code().map(|code| code.code()),
            Some("42501"),
            "{error:?}"
        );
    }
    for arguments in [applied(), vec!["adopt", "--remove", "app.notes", "--apply"]] {
        let said = run(&rival, &arguments).await.badly();
        assert!(said.contains("run this as application"), "{said}");
    }
    // Functions run with the privileges of Tidings' owner only if it agrees.
    let marking = [&ADOPT[..], &["--mark=sent", "--apply"]].concat();
    let said = run(&application(&database), &marking).await.badly();
    assert!(
        said.contains("can act as tidings_owner may use --mark"),
        "{said}"
    );
    let client = database.connect().await;
    let call = "select tidings_adopt('app.notes', 'x:', 'tidings_mark_notes')";
    let error = client.batch_execute(call).await.expect_err(call);
    assert_eq!(
        error.code().map(|code| code.code()),
        Some("42501"),
        "{error:?}"
    );
}

/// The owner of the table is no writer of Tidings yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_may_not_insert_is_given_the_statement_that_allows_it() {
    for has_groups in [true, false] {
        let cluster = start_cluster().await;
        let database = Database::bare(&cluster, "app").await;
        let superuser = database.superuser();
        if has_groups {
            database.prepare("public").await;
        }
        run(&superuser, &["migrate"]).await.well();
        superuser
            .execute(
                "create role shopkeeper login; create schema app authorization shopkeeper; \
                 set role shopkeeper; \
                 create table app.notes (id int primary key, user_id int, text text, sent boolean)",
            )
            .await;
        let shopkeeper = database.as_role("shopkeeper");
        let said = run(&shopkeeper, &applied()).await.badly();
        let (_, grant) = said.split_once("have a DBA run: ").expect("a statement");
        assert_eq!(
            grant.contains("grant tidings_writer to"),
            has_groups,
            "{said}"
        );
        let script = run(&shopkeeper, &ADOPT).await.well();
        assert!(script.contains(grant.trim_end()), "{script}");
        // A superuser may run all of it.
        run(&superuser, &applied()).await.well();
        let remove = ["adopt", "--remove", "app.notes", "--apply"];
        run(&superuser, &remove).await.well();
        // As the message advises.
        superuser.execute(grant).await;
        run(&shopkeeper, &applied()).await.well();
        shopkeeper
            .execute("insert into app.notes values (1, 7, 'x', false)")
            .await;
        let rows = "select count(*) from notifications where ref = 'notes:1'";
        assert_eq!(superuser.ids(rows).await, [1]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_may_not_use_the_schema_or_create_a_function_there_is_given_the_statement() {
    let database = with_notes().await;
    let superuser = database.superuser();
    superuser
        .execute(
            "alter schema app owner to current_user; revoke all on schema app from application",
        )
        .await;
    let application = application(&database);
    for privilege in ["usage", "create"] {
        let said = run(&application, &applied()).await.badly();
        let (_, grant) = said.split_once("have a DBA run: ").expect("a statement");
        assert!(
            grant.starts_with(&format!("grant {privilege} on schema")),
            "{said}"
        );
        if privilege == "usage" {
            let remove = ["adopt", "--remove", "app.notes", "--apply"];
            let said = run(&application, &remove).await.badly();
            assert!(said.contains(grant), "{said}");
        }
        superuser.execute(grant).await;
    }
    run(&application, &applied()).await.well();
}

/// It doesn't apply to the rows that a trigger receives, but to those that are marked.
#[tokio::test(flavor = "multi_thread")]
async fn row_level_security_that_binds_the_owner_prevents_marks_but_not_copies() {
    let database = with_notes().await;
    database
        .execute(
            "alter table app.notes enable row level security, force row level security; \
             create policy blind on app.notes for select using (false); \
             create policy writes on app.notes for insert with check (true)",
        )
        .await;
    adopt(&database, &ADOPT[1..]).await;
    let insert = "insert into app.notes (user_id, text) values (7, 'x')";
    database.execute(insert).await;
    assert_eq!(copied(&database).await, ["7|x|-|notes:1"]);
    let marking = [&ADOPT[..], &["--mark=sent", "--apply"]].concat();
    let said = run(&database.superuser(), &marking).await.badly();
    let (_, fix) = said.split_once("run ").expect("a statement");
    let (fix, _) = fix.split_once(';').expect("its end");
    database.execute(fix).await;
    run(&database.superuser(), &marking).await.well();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tidings_it_says_so() {
    let database = Database::empty().await;
    database
        .superuser()
        .execute("create table notes (id int primary key, user_id int, text text, sent boolean)")
        .await;
    let asked = ["adopt", "notes", "--user=user_id", "--text=text"];
    let said = run(&database.superuser(), &asked).await.badly();
    assert!(said.contains("run `tidings migrate`"), "{said}");
}
