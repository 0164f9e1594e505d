//! `uninstall` leaves nothing behind, removes nothing else, and asks first.

use tokio::process::Command;

use super::{run, said};
use crate::support::database::{Database, start_cluster};

/// Everything that a database contains beyond the defaults, as text.
async fn catalog(database: &Database) -> Vec<String> {
    let client = database.superuser().connect().await;
    let query = "
        select format('%s %s %s %s', relkind, nspname, relname, relacl)
        from pg_class join pg_namespace as n on n.oid = relnamespace
        where nspname !~ '^pg_' and nspname <> 'information_schema'
        union all
        select format('function %s %s', oid::regprocedure, proacl)
        from pg_proc where pronamespace not in
          ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        union all
        select format('type %s', oid::regtype)
        from pg_type where typnamespace not in
          ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)
        union all
        select format('trigger %s', tgname) from pg_trigger
        union all
        select format('schema %s %s %s', nspname, nspowner::regrole, nspacl)
        from pg_namespace where nspname !~ '^pg_'
        union all
        select format('default %s', defaclacl) from pg_default_acl
        order by 1";
    let rows = client.query(query, &[]).await.expect(query);
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_in_the_database() {
    let cluster = start_cluster().await;
    // A database without the groups, and a schema that `migrate` creates.
    let bare = Database::bare(&cluster, "bare").await.superuser();
    bare.execute("create table mine (id int)").await;
    for schema in ["--schema=public", "--schema=Our News"] {
        let before = catalog(&bare).await;
        run(&bare, &["migrate", schema]).await.well();
        assert_ne!(catalog(&bare).await, before);
        let told = run(&bare, &["uninstall", "--yes", schema]).await.well();
        assert!(told.contains("0 notifications"), "{told}");
        assert_eq!(catalog(&bare).await, before, "{schema}");
    }
    // A database with the groups: their privileges are revoked, and the output mentions them.
    let grouped = Database::bare(&cluster, "grouped").await;
    let before = catalog(&grouped).await;
    grouped.prepare("public").await;
    let superuser = grouped.superuser();
    run(&superuser, &["migrate"]).await.well();
    superuser
        .execute(
            "select send_notification('alice', 'one'), send_notification('alice', 'two'); \
             update notifications set sent_at = now() where text = 'one'",
        )
        .await;
    let told = run(&superuser, &["uninstall", "--yes"]).await.well();
    for expected in [
        "2 notifications, of which 1 are unsent",
        "drop role",
        "tidings_monitor",
    ] {
        assert!(told.contains(expected), "{told}");
    }
    assert_eq!(catalog(&grouped).await, before);
    let again = run(&superuser, &["uninstall", "--yes"]).await.badly();
    assert!(again.contains("is not installed in the schema"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_built_on_it_stops_it() {
    let database = Database::migrated().await;
    let owner = database.superuser();
    for (making, name, undoing) in [
        (
            "create view app_view as select id from notifications",
            "view public.app_view",
            "drop view app_view",
        ),
        (
            "create table app_table (id bigint references notifications)",
            "app_table",
            "drop table app_table",
        ),
    ] {
        owner.execute(making).await;
        let before = catalog(&database).await;
        let told = run(&owner, &["uninstall", "--yes"]).await.badly();
        assert!(
            told.contains(name) && told.contains("nothing was removed"),
            "{told}"
        );
        assert_eq!(catalog(&database).await, before);
        owner.execute(undoing).await;
    }
    // The bridge's role may not do this.
    let told = run(&database, &["uninstall", "--yes"]).await.badly();
    assert!(
        told.contains("have its owner run `tidings migrate` or the command that you ran"),
        "{told}"
    );
    run(&database.owner(), &["uninstall", "--yes"]).await.well();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_asks_for_the_schemas_name_and_takes_no_other_answer() {
    let database = Database::migrated().await.owner();
    let told = run(&database, &["uninstall"]).await.badly();
    assert!(told.contains("--yes"), "{told}");
    for (answer, removed) in [("yes", false), ("public", true)] {
        // `script` gives the program a terminal.
        let mut terminal = Command::new("script");
        terminal
            .args(["-qec", concat!(env!("CARGO_BIN_EXE_tidings"), " uninstall")])
            .arg("/dev/null")
            .env("DATABASE_URL", database.connection_string())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let said = said(terminal, &format!("{answer}\n")).await;
        assert_eq!(said.code, Some(i32::from(!removed)), "{said:?}");
        assert!(said.out.contains("type the schema's name"), "{said:?}");
        let is_gone = format!("select (to_regclass('notifications') is null) = {removed}");
        database.until(&is_gone).await;
    }
}
