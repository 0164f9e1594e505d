//! `check` detects what prevents or slows down the removal of old rows. Once its fixes are applied,
//! rows are removed and it reports no problems.

use super::{
    run,
    state::{both_are_content, both_find, found_and_fixed, hint},
};
use crate::support::database::Database;

/// A database with rows that were sent long ago.
async fn filled() -> Database {
    let database = Database::migrated().await;
    let fill = "insert into notifications (user_id, text, created_at, sent_at) \
                select 'bob', 'sent', now() - interval '3 hours', now() - interval '2 hours' \
                from generate_series(1, 10)";
    database.owner().execute(fill).await;
    database
}

async fn prune(database: &Database) {
    run(database, &["prune", "--sent-before=1h"]).await.well();
}

const LEFT: &str = "select count(*) from notifications";

#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_without_an_index_are_found_and_fixed() {
    for (target, columns) in [
        (
            "notifications",
            "ref bigint references notifications on delete cascade",
        ),
        (
            "notifications",
            "ref bigint references notifications on delete set null",
        ),
        (
            "stream_tickets",
            "ref bytea references stream_tickets on delete cascade",
        ),
    ] {
        let database = Database::migrated().await;
        database
            .superuser()
            .execute(&format!(
                "create schema \"the App\"; \
                 create table \"the App\".receipts (id int primary key, reader text, {columns}); \
                 create index on \"the App\".receipts (reader, ref); \
                 create index on \"the App\".receipts (ref) where reader is not null"
            ))
            .await;
        let text = format!(
            "the foreign key receipts_ref_fkey of \"the App\".receipts refers to public.{target}"
        );
        found_and_fixed(&database, &[], "prune", &text).await;
    }
    // These foreign keys don't interfere.
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "create table a (ref bigint references notifications on delete cascade); \
             create index on a (ref) where ref is not null; \
             create table b (ref bigint references notifications on delete cascade); \
             create index on b using hash (ref); \
             create table c (ref bigint references notifications on delete cascade, \
               reader text, primary key (ref, reader))",
        )
        .await;
    both_are_content(&database, &[]).await;
    assert!(
        !run(&database, &["check"])
            .await
            .well()
            .contains("foreign key")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_that_keep_rows_are_found_and_fixed_with_what_else_they_say() {
    for (definition, stays) in [
        ("references notifications", ""),
        ("references notifications on delete restrict", ""),
        (
            "references notifications on update cascade deferrable initially deferred",
            "ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED",
        ),
    ] {
        let database = filled().await;
        let create = format!(
            "create table receipts (\"the row\" bigint primary key {definition}); \
             insert into receipts values (3), (4)"
        );
        database.superuser().execute(&create).await;
        let said = run(&database, &["check", "--json"]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        let name = "\"receipts_the row_fkey\"";
        let found = hint(
            &said,
            &format!("the foreign key {name} of public.receipts keeps"),
        );
        assert_eq!(found["topic"], "prune");
        prune(&database).await;
        assert_eq!(database.ids(LEFT).await, [2]);
        let text = "2 rows could not be removed so far";
        found_and_fixed(&database, &[], "prune", text).await;
        prune(&database).await;
        assert_eq!(database.ids(LEFT).await, [0]);
        let made = "select pg_get_constraintdef(oid) from pg_constraint \
                    where conname = 'receipts_the row_fkey' and convalidated";
        let client = database.owner().connect().await;
        let made: String = client.query_one(made, &[]).await.expect(made).get(0);
        assert!(
            made.contains(stays) && made.contains("ON DELETE CASCADE"),
            "{made}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_rules_that_keep_rows_are_found_and_fixed() {
    for (obstacle, text) in [
        (
            "create function keep() returns trigger language plpgsql as $$ begin \
               raise exception 'kept'; end $$; \
             create trigger \"the keeper\" before delete on notifications \
               for each row execute function keep()",
            "the trigger \"the keeper\" on public.notifications (public.keep()) runs when a row is removed",
        ),
        (
            "create rule keep as on delete to notifications do instead nothing",
            "the rule keep on public.notifications runs when a row is removed",
        ),
    ] {
        let database = filled().await;
        database.superuser().execute(obstacle).await;
        let said = run(&database, &["check", "--json"]).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(hint(&said, text).is_object());
        prune(&database).await;
        assert_eq!(database.ids(LEFT).await, [10]);
        let fixes = both_find(
            &database,
            &[],
            "prune",
            "10 rows could not be removed so far",
        )
        .await;
        for fix in fixes {
            database.superuser().execute(&fix).await;
        }
        prune(&database).await;
        assert_eq!(database.ids(LEFT).await, [0]);
        both_are_content(&database, &[]).await;
    }
}

/// A cause outside our tables is reported in Postgres's words.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stay_for_another_reason_are_found_with_the_reason() {
    let database = filled().await;
    database
        .superuser()
        .execute(
            "create table receipts \
               (notification_id bigint primary key references notifications on delete cascade); \
             insert into receipts values (3); \
             create function keep() returns trigger language plpgsql as $$ begin \
               raise exception E'kept for\\x1b the auditors'; end $$; \
             create trigger keep before delete on receipts for each row execute function keep()",
        )
        .await;
    both_are_content(&database, &[]).await;
    prune(&database).await;
    let text = "1 row could not be removed when due: kept for  the auditors";
    both_find(&database, &[], "prune", text).await;
    let fix = "alter table receipts disable trigger keep";
    database.superuser().execute(fix).await;
    prune(&database).await;
    both_are_content(&database, &[]).await;
}
