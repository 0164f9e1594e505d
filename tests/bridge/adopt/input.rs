//! What people write on the command line: names and expressions.

use proptest::{
    collection::vec, prelude::*, sample::select, strategy::ValueTree, test_runner::TestRunner,
};
use tidings::postgres::{adoption::Expression, schema::SchemaName};
use tokio_postgres::SimpleQueryMessage;

use super::{adopt, application, copied, rows, with_app, with_notes};
use crate::command_line::run;

/// A name in double quotes.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_expressions_stay_what_they_are() {
    let database = with_app().await;
    let superuser = database.superuser();
    let canary = "create table app.canary ()";
    database.execute(canary).await;
    let long = ["1", "2"].map(|end| "n".repeat(62) + end);
    let names = [
        "Our Notes",
        "it's",
        "a\"b",
        "a\"; drop table app.canary; --",
        "'; drop table app.canary; --",
        "$tidings$; drop table app.canary; --",
        "$$ $tidings1$",
        "b\\'; drop table app.canary; --",
        "-- \n; drop table app.canary",
        "(]",
        "select",
        "grüße%s",
        &long[0],
        &long[1],
    ];
    for (index, name) in names.iter().enumerate() {
        let (schema, name) = (quoted(&format!("s {index} {}", &name[..1])), quoted(name));
        superuser
            .execute(&format!("create schema {schema} authorization application"))
            .await;
        let table = format!("{schema}.{name}");
        // The columns are named as the table is.
        let create = format!(
            "create table {table} ({name} text primary key, u text, sent boolean); \
             alter table {table} rename u to \"U {index}\""
        );
        database.execute(&create).await;
        let text = format!("n.{name} || E'\\'\"$tidings$' || $x$;--$x$");
        let arguments = [
            "adopt",
            &table,
            &format!("--user=\"U {index}\""),
            &format!("--text={text}"),
            &format!("--mark={}", quoted("sent")),
            "--apply",
        ];
        run(&superuser, &arguments).await.well();
        let insert = format!("insert into {table} values ('k', 'u')");
        // Sessions may read strings in another way.
        let client = database.connect().await;
        for strings in ["on", "off"] {
            let set = format!("set standard_conforming_strings = {strings}");
            client.batch_execute(&set).await.expect(&set);
            client.batch_execute(&insert).await.expect(&insert);
            let delete = format!("delete from {table}");
            client.batch_execute(&delete).await.expect(&delete);
        }
    }
    let expected = names.map(|name| format!("u|k'\"$tidings$;--|-|{name}:k"));
    let expected: Vec<_> = expected.iter().flat_map(|row| [row, row]).collect();
    let found = copied(&database).await;
    assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    let client = superuser.connect().await;
    let functions = "select proname::text from pg_proc where proname like 'tidings\\_copy\\_n%'";
    let functions = rows(&client, functions).await;
    assert_eq!(functions.len(), 2);
    assert_ne!(functions[0], functions[1]);
    run(&superuser, &["check"]).await.well();
    let left = "select count(*) from app.canary";
    assert_eq!(superuser.ids(left).await, [0]);
    // What was created can be found by its name again.
    for (index, name) in names.iter().enumerate() {
        let table = format!(
            "{}.{}",
            quoted(&format!("s {index} {}", &name[..1])),
            quoted(name)
        );
        run(&superuser, &["adopt", "--remove", &table, "--apply"])
            .await
            .well();
    }
    let left = "select count(*) from pg_proc where proname ~ '^tidings_(copy|mark)_' \
                  and pronamespace <> 'public'::regnamespace \
                union all select count(*) from tidings_adopted";
    assert_eq!(superuser.ids(left).await, [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_adopted_is_refused_with_what_to_do() {
    let database = with_notes().await;
    let superuser = database.superuser();
    superuser
        .execute(
            "create foreign data wrapper nowhere; create server nowhere foreign data wrapper nowhere; \
             create foreign table app.far (id int, u text) server nowhere; \
             create view app.seen as select * from app.notes; \
             create materialized view app.kept as select * from app.notes; \
             create table app.parted (id int, u text) partition by list (id); \
             create table app.part partition of app.parted default; \
             create table app.keyless (id int, u text); \
             create table app.wide (a int, b int, u text, \"createdAt\" timestamptz, sent boolean, \
               primary key (a, b)); \
             create function app.render(text) returns text language sql as 'select $1'",
        )
        .await;
    let notes = ["app.notes", "--user=user_id"];
    for (arguments, expected) in [
        (
            vec!["app.none", "--user=u", "--text=u"],
            "there is no table \"app\".\"none\"",
        ),
        (
            vec!["none", "--user=u", "--text=u"],
            "there is no table \"none\"",
        ),
        (vec!["My Table", "--user=u", "--text=u"], "in double quotes"),
        (vec!["a.b.c", "--user=u", "--text=u"], "is not a name"),
        (
            vec!["app.seen", "--user=user_id", "--text=text"],
            "\"app\".\"seen\" is a view",
        ),
        (
            vec!["app.kept", "--user=user_id", "--text=text"],
            "is a view",
        ),
        (
            vec!["app.far", "--user=u", "--text=u"],
            "is a foreign table",
        ),
        (
            vec!["app.part", "--user=u", "--text=u"],
            "adopt the whole table, app.parted",
        ),
        (
            vec!["pg_catalog.pg_class", "--user=relname", "--text=relname"],
            "a table of Postgres",
        ),
        (
            vec!["public.notifications", "--user=user_id", "--text=text"],
            "a table of Tidings",
        ),
        (vec!["app.keyless", "--user=u", "--text=u"], "pass --ref"),
        (
            vec!["app.wide", "--user=createdat", "--text=u"],
            "write \"createdAt\"",
        ),
        (
            vec!["app.wide", "--user=nobody", "--text=u"],
            "has no column nobody",
        ),
        (
            vec!["app.wide", "--user=u", "--text=u", "--mark=sent"],
            "primary key of one column",
        ),
        (
            [&notes[..], &["--text=text", "--mark=kind"]].concat(),
            "has the type text",
        ),
        (
            [&notes[..], &["--text=txt"]].concat(),
            "--text can't be used: column \"txt\" does not exist",
        ),
        (
            [&notes[..], &["--text=ctid"]].concat(),
            "column \"ctid\" does not exist",
        ),
        (
            [&notes[..], &["--text=max(text)"]].concat(),
            "over the columns of one row",
        ),
        (
            [&notes[..], &["--text=(select max(n.text))"]].concat(),
            "over the columns of one row",
        ),
        (
            [&notes[..], &["--text=first_value(text) over ()"]].concat(),
            "over the columns of one row",
        ),
        (
            [&notes[..], &["--text=regexp_split_to_table(text, 'x')"]].concat(),
            "over the columns of one row",
        ),
        (
            [&notes[..], &["--text=render(text)"]].concat(),
            "need their schema, as in app.render",
        ),
        (
            [
                &notes[..],
                &["--text=text", "--event=(select t from app.notes)"],
            ]
            .concat(),
            "--event can't be used",
        ),
        (
            [&notes[..], &["--text=text", "--ref=id +"]].concat(),
            "--ref can't be used: syntax error",
        ),
        (
            [&notes[..], &["--text=text", "--where=text"]].concat(),
            "--where can't be used: argument of WHERE must be type boolean",
        ),
        (
            [&notes[..], &["--text=text", "--existing=nothing"]].concat(),
            "--existing can't be used",
        ),
    ] {
        let arguments = [&["adopt"], &arguments[..]].concat();
        let said = run(&superuser, &arguments).await.badly();
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    for (arguments, expected) in [
        (
            vec!["--user=user_id", "--text=text; drop table app.notes"],
            "a semicolon",
        ),
        (
            vec!["--user=user_id", "--text=text) from app.notes; --"],
            "that it did not open",
        ),
        (vec!["--user=user_id", "--text=text -- x"], "a comment"),
        (vec!["--user=user_id", "--text=$1"], "a parameter"),
        (vec!["--user=user_id"], "--text"),
        (vec!["--text=text"], "--user"),
        (
            vec!["--user=user_id", "--text=text", "--mark=sent", "--ref=id"],
            "cannot be used with",
        ),
        (vec!["--remove", "--text=text"], "cannot be used with"),
    ] {
        let arguments = [&["adopt", "app.notes"], &arguments[..]].concat();
        let said = run(&superuser, &arguments).await.misused();
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let changed = "select count(*) from pg_trigger where tgname = 'tidings_copy'";
    assert_eq!(superuser.ids(changed).await, [0]);
    // With the schema, and with a ref.
    adopt(
        &database,
        &[&notes[..], &["--text=app.render(text)"]].concat(),
    )
    .await;
    let keyless = [
        "adopt",
        "app.keyless",
        "--user=u",
        "--text=u",
        "--ref=id",
        "--apply",
    ];
    run(&superuser, &keyless).await.well();
    let parted = [
        "adopt",
        "app.parted",
        "--user=u",
        "--text=u",
        "--ref=id",
        "--apply",
    ];
    let said = run(&application(&database), &parted).await.badly();
    assert!(said.contains("can't act as"), "{said}");
}

/// Pieces of which nearly valid expressions are made.
const PIECES: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "'",
    "''",
    "\"",
    "\\",
    "\\'",
    "e'",
    "E'",
    "u&'",
    "U&\"",
    "n'",
    "b'",
    "x'",
    "$",
    "$$",
    "$a$",
    "$1",
    "a",
    "e",
    "1",
    "1e",
    "1e5",
    "0x",
    ".",
    "1.",
    ",",
    ";",
    "--",
    "/*",
    "*/",
    "\n",
    "\r\n",
    " ",
    "\u{b}",
    "text",
    "id",
    "n.id",
    "||",
    "::text",
    "+",
    "select ",
    " from ",
    "ü",
    "), (",
    "), 1 --",
    "'), 1 --'",
    "e'\\'",
    "$a$), 1 --$a$",
];

/// Names of schemas are quoted by the same functions as those of tables and columns.
#[tokio::test(flavor = "multi_thread")]
async fn every_name_is_that_name_in_sql() {
    let database = with_app().await;
    let client = database.connect().await;
    let pieces = vec(select(PIECES), 1..9).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::deterministic();
    let mut tried = 0;
    for _ in 0..2_000 {
        let name = pieces.new_tree(&mut runner).expect("a text").current();
        // It rejects those that would end a function's body in a migration.
        let Ok(schema) = name.parse::<SchemaName>() else {
            continue;
        };
        tried += 1;
        for strings in ["on", "off"] {
            let set = format!("set standard_conforming_strings = {strings}");
            client.batch_execute(&set).await.expect(&set);
            let query = "select :'schema' as :\"schema\", parse_ident(:'\"schema\".x') as x";
            let answer = client.simple_query(&schema.fill(query)).await.expect(&name);
            let mut found = answer.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
            let row = found.next().expect("a row");
            assert_eq!(row.columns()[0].name(), name);
            assert_eq!(row.get(0), Some(name.as_str()));
            assert_eq!(answer.len(), 3, "{name:?}");
        }
    }
    assert!(tried > 1_000, "{tried}");
}

/// Whatever is accepted stays one column of one statement, as a lexer of Postgres reads it.
#[tokio::test(flavor = "multi_thread")]
async fn no_expression_that_is_accepted_leaves_its_parentheses() {
    let database = with_app().await;
    let client = database.connect().await;
    let pieces = vec(select(PIECES), 1..9).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::deterministic();
    let (mut accepted, mut valid) = (0, 0);
    for _ in 0..20_000 {
        let text = pieces.new_tree(&mut runner).expect("a text").current();
        if text.parse::<Expression>().is_err() {
            continue;
        }
        accepted += 1;
        for strings in ["on", "off"] {
            // The function that contains it is always run with `on`.
            if strings == "off" && text.contains('\\') {
                continue;
            }
            // A query is read with the setting of the one before.
            let set = format!("set standard_conforming_strings = {strings}");
            client.batch_execute(&set).await.expect(&set);
            let query =
                format!("select ({text})::text as only from (select 1 as id, 'x' as text) as n");
            let Ok(answer) = client.simple_query(&query).await else {
                continue;
            };
            valid += 1;
            let columns: Vec<_> = answer
                .iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::RowDescription(columns) => Some(columns.iter()),
                    _ => None,
                })
                .flatten()
                .map(|column| column.name())
                .collect();
            let done = answer
                .iter()
                .filter(|message| matches!(message, SimpleQueryMessage::CommandComplete(_)));
            assert_eq!((columns, done.count()), (vec!["only"], 1), "{text:?}");
        }
    }
    assert!(
        accepted > 500 && valid > 200,
        "{accepted} accepted, {valid} valid"
    );
}
