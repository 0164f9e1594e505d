//! `tidings check`: what the bridge lacks and what others have, each with the
//! statement that puts it right.

use tidings::{
    check::{self, Finding, Kind},
    schema::SchemaName,
};

use crate::support::{
    database::{Database, start_cluster},
    process::Served,
};

async fn findings(database: &Database) -> Vec<Finding> {
    let found = check::examine(&database.url(), &SchemaName::public()).await;
    found.expect("findings")
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_nothing_where_roles_sql_was_run_and_hints_at_a_mighty_bridge() {
    let database = Database::migrated().await;
    assert_eq!(findings(&database).await, []);
    for mighty in [database.owner(), database.superuser()] {
        let found = findings(&mighty).await;
        assert!(found.len() == 1 && found[0].kind == Kind::Hint, "{found:?}");
    }
}

/// As hosters set it up for the roles of their own interfaces.
#[tokio::test(flavor = "multi_thread")]
async fn default_privileges_that_let_others_read_are_found_and_warned_of() {
    let cluster = start_cluster().await;
    let database = Database::empty_in(&cluster).await;
    database
        .superuser()
        .execute(
            "create role anon; \
             alter default privileges for role tidings_owner in schema public \
               grant all on tables to anon; \
             alter default privileges for role tidings_owner in schema public \
               grant execute on functions to anon",
        )
        .await;
    database.migrate().await;
    let mut bridge = Served::start(&database, &[]).await;
    bridge
        .until_logged("WARN", "anon has select on table public.notifications")
        .await;
    let found = findings(&database).await;
    for (what, kind) in [
        ("anon has select on table public.notifications", Kind::Read),
        (
            "anon has execute on function public.create_stream_ticket(user_id text, ttl interval)",
            Kind::Read,
        ),
        ("anon has update on table public.notifications", Kind::Wide),
        ("anon has select on table public.stream_tickets", Kind::Wide),
        ("anon has execute on all new functions", Kind::Wide),
    ] {
        let is_it = |finding: &&Finding| finding.what == what;
        let finding = found
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("{what}: {found:?}"));
        assert_eq!(finding.kind, kind, "{what}");
    }
    // Each says how it is put right, and then it is.
    for finding in &found {
        database.superuser().execute(&finding.cure).await;
    }
    assert_eq!(findings(&database).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_the_bridge_lacks_and_what_strangers_have() {
    let database = Database::migrated().await;
    let breaking = [
        (
            "revoke usage on schema public from public, tidings_bridge",
            "usage on schema public",
        ),
        (
            "revoke select on notifications from tidings_bridge",
            "select on table public.notifications",
        ),
        (
            "revoke update (sent_at) on notifications from tidings_bridge",
            "update (sent_at)",
        ),
        (
            "revoke select on stream_tickets from tidings_bridge",
            "select on table public.stream_tickets",
        ),
        (
            "revoke select on tidings_schema_history from tidings_bridge",
            "tidings_schema_history",
        ),
        (
            "revoke execute on function tidings_pruned_through from tidings_bridge",
            "tidings_pruned_through",
        ),
        (
            "revoke update on tidings_drained from tidings_bridge",
            "update on table public.tidings_drained",
        ),
        (
            "revoke update on tidings_bell from tidings_bridge",
            "update on sequence public.tidings_bell",
        ),
        (
            "revoke select on tidings_reopened from tidings_bridge",
            "select on table public.tidings_reopened",
        ),
        (
            "revoke execute on function pg_control_system() from public, tidings_bridge",
            "pg_control_system()",
        ),
        (
            "grant create on schema public to public",
            "public has create on schema public",
        ),
        (
            "grant select (text) on notifications to public",
            "public has select (text) on table public.notifications",
        ),
        (
            "grant execute on function send_notification(text, text, text) to public",
            "public has execute on function public.send_notification",
        ),
    ];
    for (statement, expected) in breaking {
        database.superuser().execute(statement).await;
        let found = findings(&database).await;
        let wrong: Vec<&Finding> = found.iter().filter(|found| found.is_wrong()).collect();
        assert!(!wrong.is_empty(), "{statement}");
        assert!(
            wrong.iter().any(|found| found.what.contains(expected)),
            "{statement}: {found:?}"
        );
        for finding in found {
            database.superuser().execute(&finding.cure).await;
        }
        assert_eq!(findings(&database).await, [], "{statement}");
    }
    // As the command line tells it.
    database
        .superuser()
        .execute("grant select on notifications to public")
        .await;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_tidings"))
        .arg("check")
        .env("DATABASE_URL", database.connection_string())
        .output()
        .await
        .expect("the binary");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    let line = "wrong: public has select on table public.notifications: \
                revoke select on table public.notifications from public;\n";
    assert_eq!(said, line);
}
