//! Which rows are copied, and when.

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::error::SqlState;

use super::{adopt, application, copied, rows, with_app, with_notes};
use crate::{
    command_line::run,
    support::{bridge::Bridge, until},
};

const NOTES: [&str; 4] = [
    "app.notes",
    "--user=user_id",
    "--text=text",
    "--where=not sent",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_copied_with_its_transaction_and_reaches_the_browser_with_its_ref() {
    let database = with_notes().await;
    let script = run(&application(&database), &[&["adopt"], &NOTES[..]].concat()).await;
    let script = script.well();
    assert!(
        script.contains("-- Rows whose \"user_id\" is null are not copied."),
        "{script}"
    );
    assert_eq!(copied(&database).await, [""; 0]);
    // It can be repeated.
    for _ in 0..2 {
        database.execute(&script).await;
    }
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_with("7", "?format=json", &[]).await;
    until(&mut source, "tidings.caught-up").await;
    let client = database.connect().await;
    for (statement, returned) in [
        (
            "insert into app.notes (user_id, text) values (7, 'one') returning id",
            1,
        ),
        (
            "insert into app.notes (user_id, text, sent) values (7, 'old', true) returning id",
            1,
        ),
        (
            "insert into app.notes (text) values ('for nobody') returning id",
            1,
        ),
        (
            "insert into app.notes (user_id, text) \
             select 7, 'bulk ' || n from generate_series(1, 3) n returning id",
            3,
        ),
        (
            "update app.notes set text = 'changed' where text = 'one' returning id",
            1,
        ),
        (
            "insert into app.notes (id, user_id, text) overriding system value \
             values (1, 7, 'there'), (99, 7, 'not there') on conflict do nothing returning id",
            1,
        ),
        (
            "insert into app.notes (id, user_id, text) overriding system value \
             values (1, 7, 'updated'), (98, 7, 'inserted') \
             on conflict (id) do update set text = excluded.text returning id",
            2,
        ),
        (
            "insert into app.notes (user_id, text) select 7, 'none' where false returning id",
            0,
        ),
    ] {
        let rows = client.query(statement, &[]).await.expect(statement);
        assert_eq!(rows.len(), returned, "{statement}");
    }
    let rolled_back = "begin; insert into app.notes (user_id, text) values (7, 'x'); rollback";
    client.batch_execute(rolled_back).await.expect(rolled_back);
    let copy = "copy app.notes (user_id, text) from stdin";
    let sink = client.copy_in(copy).await.expect(copy);
    futures_util::pin_mut!(sink);
    sink.send(Bytes::from("7\tcopied\n8\tfor another\n"))
        .await
        .expect("rows");
    assert_eq!(sink.finish().await.expect("rows"), 2);

    let expected = [
        ("one", 1),
        ("bulk 1", 4),
        ("bulk 2", 5),
        ("bulk 3", 6),
        ("not there", 99),
        ("inserted", 98),
        ("copied", 8),
    ];
    for (text, id) in expected {
        let event = source.next_event().await;
        let data: serde_json::Value = serde_json::from_str(&event.data).expect("JSON");
        assert_eq!(data["text"], text);
        assert_eq!(data["ref"], format!("notes:{id}"));
    }
    assert_eq!(copied(&database).await.len(), expected.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn event_and_ref_are_expressions_and_existing_rows_are_copied_on_request() {
    let database = with_notes().await;
    database
        .execute(
            "insert into app.notes (user_id, text, kind) \
             values (1, 'new', 'a'), (2, 'old', 'a'), (3, 'other', null), (null, 'nobody', 'a')",
        )
        .await;
    let arguments = [
        "app.notes",
        "--user=user_id",
        "--text=upper(text)",
        "--event=kind",
        "--ref='n' || n.id * 10",
        "--where=kind is not null",
        "--existing=text <> 'old'",
    ];
    adopt(&database, &arguments).await;
    assert_eq!(copied(&database).await, ["1|NEW|a|n10"]);
    // They would be sent again.
    let again = [&["adopt"], &arguments[..], &["--apply"]].concat();
    let said = run(&application(&database), &again).await.badly();
    assert!(said.contains("is adopted already"), "{said}");
    assert!(said.contains("end the copying first"), "{said}");
    assert_eq!(copied(&database).await, ["1|NEW|a|n10"]);
    // The path of the session is as before.
    let remove = ["adopt", "--remove", "app.notes", "--apply"];
    run(&application(&database), &remove).await.well();
    let script = run(
        &application(&database),
        &[&["adopt"], &arguments[..]].concat(),
    )
    .await;
    let script = script
        .well()
        .replace("begin;\n", "")
        .replace("\ncommit;\n", "");
    let client = database.connect().await;
    client
        .batch_execute(&format!("begin; set local search_path = app; {script}"))
        .await
        .expect("the script");
    let path = rows(&client, "show search_path").await;
    assert_eq!(path, ["app"]);
    client.batch_execute("rollback").await.expect("a rollback");
    adopt(&database, &arguments[..6]).await;
    database
        .execute(
            "insert into app.notes (user_id, text, kind) values (4, 'later', 'b'), (5, 'x', null)",
        )
        .await;
    assert_eq!(copied(&database).await, ["1|NEW|a|n10", "4|LATER|b|n50"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_type_and_number_of_columns_become_refs() {
    let database = with_app().await;
    for (table, insert, reference) in [
        (
            "create table app.t (u text, code uuid primary key)",
            "insert into app.t values ('a', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')",
            "t:a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ),
        (
            "create table app.t (u text, b int, a text, primary key (a, b) include (u))",
            "insert into app.t values ('a', 7, 'x')",
            "t:x,7",
        ),
        (
            "create table app.t (u text, id int primary key, \
               text text generated always as (upper(u)) stored) partition by range (id); \
             create table app.t_1 partition of app.t for values from (1) to (10)",
            "insert into app.t values ('a', 7)",
            "t:7",
        ),
    ] {
        database.execute(table).await;
        adopt(&database, &["app.t", "--user=u", "--text='x'"]).await;
        database.execute(insert).await;
        assert_eq!(copied(&database).await, [format!("a|x|-|{reference}")]);
        database.execute("drop table app.t").await;
        let start_over = "truncate notifications; delete from tidings_adopted";
        database.superuser().execute(start_over).await;
    }
}

/// An error is better than a notification that disappears.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_can_be_no_notification_is_refused_with_the_constraint() {
    let database = with_notes().await;
    adopt(
        &database,
        &["app.notes", "--user=user_id", "--text=text", "--event=kind"],
    )
    .await;
    let client = database.connect().await;
    for (insert, constraint) in [
        (
            "insert into app.notes (user_id, text) values (7, repeat('x', 1048577))",
            "notifications_text_length",
        ),
        (
            "insert into app.notes (user_id, text, kind) values (7, 'x', E'a\nb')",
            "notifications_event_one_line",
        ),
        (
            "insert into app.notes (user_id, text, kind) values (7, 'x', '')",
            "notifications_event_length",
        ),
    ] {
        let error = client.batch_execute(insert).await.expect_err(insert);
        assert_eq!(error.code(), Some(&SqlState::CHECK_VIOLATION), "{error:?}");
        let found = error.as_db_error().and_then(|error| error.constraint());
        assert_eq!(found, Some(constraint));
    }
    let null = "insert into app.notes (user_id) values (7)";
    let error = client.batch_execute(null).await.expect_err(null);
    assert_eq!(error.code(), Some(&SqlState::NOT_NULL_VIOLATION));
    assert_eq!(copied(&database).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_one_name_in_two_schemas_are_told_apart() {
    let database = with_app().await;
    let superuser = database.superuser();
    superuser
        .execute("create schema other authorization application")
        .await;
    for schema in ["app", "other"] {
        database
            .execute(&format!(
                "create table {schema}.t (id int primary key, u text)"
            ))
            .await;
    }
    // Neither is on the path; then both are.
    let asked = run(
        &application(&database),
        &["adopt", "t", "--user=u", "--text=u"],
    )
    .await;
    let said = asked.badly();
    assert!(
        said.contains("write \"app\".\"t\" or \"other\".\"t\""),
        "{said}"
    );
    let path = format!(
        "alter role application in database {} set search_path",
        database.name()
    );
    superuser.execute(&format!("{path} to app, other")).await;
    let asked = run(
        &application(&database),
        &["adopt", "t", "--user=u", "--text=u"],
    )
    .await;
    let said = asked.badly();
    assert!(
        said.contains("write one of \"app\".\"t\", \"other\".\"t\""),
        "{said}"
    );
    superuser.execute(&format!("{path} to other")).await;
    adopt(&database, &["t", "--user=u", "--text=u"]).await;
    for _ in 0..2 {
        adopt(&database, &["app.t", "--user=u", "--text=u"]).await;
        adopt(&database, &["other.t", "--user=u", "--text=u"]).await;
    }
    database
        .execute("insert into app.t values (1, 'a'); insert into other.t values (1, 'b')")
        .await;
    assert_eq!(copied(&database).await, ["a|a|-|app.t:1", "b|b|-|t:1"]);
    // Its refs keep their beginning, by which its rows are found.
    let remove = ["adopt", "--remove", "other.t", "--apply"];
    run(&application(&database), &remove).await.well();
    adopt(&database, &["app.t", "--user=u", "--text=u"]).await;
    database.execute("insert into app.t values (2, 'c')").await;
    assert_eq!(copied(&database).await[2], "c|c|-|app.t:2");
}

/// It goes on being copied, so a command that ends this must know.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_renamed_or_moved_is_adopted_again_before_its_former_name_is_removed() {
    let database = with_notes().await;
    adopt(&database, &NOTES).await;
    let superuser = database.superuser();
    for (rename, former, now) in [
        (
            "alter table app.notes rename to memos",
            "app.notes",
            "app.memos",
        ),
        ("alter schema app rename to shop", "app.memos", "shop.memos"),
    ] {
        superuser.execute(rename).await;
        let insert = format!("insert into {now} (user_id, text) values (7, 'x')");
        database.execute(&insert).await;
        let remove = ["adopt", "--remove", former, "--apply"];
        let said = run(&application(&database), &remove).await.badly();
        assert!(said.contains(&format!("is now called {now}")), "{said}");
        let found = run(&superuser, &["check", "--json"]).await.json();
        let expected = format!("the adopted table {former} is now called {now}");
        assert!(found.to_string().contains(&expected), "{found}");
        adopt(&database, &[&[now], &NOTES[1..]].concat()).await;
        run(&application(&database), &remove).await.well();
        run(&superuser, &["check"]).await.well();
        database.execute(&insert).await;
    }
    let refs: Vec<_> = copied(&database).await;
    assert_eq!(
        refs,
        [
            "7|x|-|notes:1",
            "7|x|-|memos:2",
            "7|x|-|memos:3",
            "7|x|-|shop.memos:4"
        ]
    );
    // Another table may have the former name.
    let taken = "alter table shop.memos rename to letters; \
                 create table shop.memos (id int primary key, user_id int, text text, sent bool)";
    superuser.execute(taken).await;
    let other = [&["adopt", "shop.memos"], &NOTES[1..]].concat();
    let said = run(&superuser, &other).await.badly();
    assert!(
        said.contains("repeat the `tidings adopt` of shop.letters"),
        "{said}"
    );
}

/// Only applications that write to the table wait.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_the_table_is_not_in_the_way() {
    let database = with_notes().await;
    let client = database.connect().await;
    let read = "begin; select * from app.notes";
    client.batch_execute(read).await.expect(read);
    for _ in 0..2 {
        adopt(&database, &NOTES).await;
    }
    client.batch_execute("commit").await.expect("a commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_remove_nothing_is_left_even_if_the_table_is_gone() {
    let database = with_notes().await;
    let left = "select count(*) from pg_proc where proname like 'tidings\\_%' \
                  and pronamespace = 'app'::regnamespace \
                union all select count(*) from tidings_adopted \
                union all select count(*) from pg_trigger where tgname = 'tidings_copy'";
    adopt(&database, &NOTES).await;
    assert_eq!(database.superuser().ids(left).await, [1, 1, 1]);
    let script = run(&application(&database), &["adopt", "--remove", "app.notes"]).await;
    database.execute(&script.well()).await;
    assert_eq!(database.superuser().ids(left).await, [0, 0, 0]);
    database
        .execute("insert into app.notes (user_id, text) values (7, 'x')")
        .await;
    assert_eq!(copied(&database).await, [""; 0]);

    adopt(&database, &NOTES).await;
    database.execute("drop table app.notes").await;
    for name in ["notes", "app.notes"] {
        let remove = ["adopt", "--remove", name, "--apply"];
        let said = run(&application(&database), &remove).await;
        match name {
            "notes" => drop(said.well()),
            _ => assert!(said.badly().contains("there is no table \"app\".\"notes\"")),
        }
    }
    assert_eq!(database.superuser().ids(left).await, [0, 0, 0]);
}

/// Applications wait for at most two seconds at a time.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_use_is_adopted_when_its_transaction_has_ended() {
    let database = with_notes().await;
    let client = database.connect().await;
    client
        .batch_execute("begin; insert into app.notes (user_id, text) values (7, 'before')")
        .await
        .expect("a transaction");
    let adopting = adopt(&database, &NOTES);
    let ending = async {
        let waits = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' \
                       and query like '%tidings_copy%' and pid <> pg_backend_pid())";
        database.superuser().until(waits).await;
        let gives_up = format!("select not ({waits})");
        database.superuser().until(&gives_up).await;
        client.batch_execute("commit").await.expect("a commit");
    };
    tokio::join!(adopting, ending);
    database
        .execute("insert into app.notes (user_id, text) values (7, 'after')")
        .await;
    assert_eq!(copied(&database).await, ["7|after|-|notes:2"]);
}
