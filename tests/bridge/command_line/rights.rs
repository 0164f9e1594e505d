//! `tidings check`: privileges that the bridge lacks and excess privileges of others, each with the
//! statement that fixes it.

use clap::Parser;
use tidings::{
    check::{self, Finding, Fix, Installation, Severity, Subject},
    config::{Cli, Command},
    postgres::schema::SchemaName,
};

use crate::support::{
    database::{Database, start_cluster},
    process::Served,
};

async fn fix(database: &Database, finding: &Finding) {
    let Fix::Sql(fix) = &finding.fix else {
        panic!("no statement fixes {finding:?}")
    };
    database.superuser().execute(fix).await;
}

async fn findings(database: &Database) -> Vec<Finding> {
    let Command::Check(options) = Cli::parse_from(["tidings", "check"]).command else {
        panic!("not check")
    };
    let place = Installation {
        nats: None,
        direct: &database.url(),
        pooled: None,
        schema: &SchemaName::public(),
        replicas: &[],
        memberships: None,
    };
    let report = check::examine(place, &options.thresholds).await;
    report.expect("findings").findings
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_nothing_where_roles_sql_was_run_and_hints_at_a_mighty_bridge() {
    let database = Database::migrated().await;
    assert_eq!(findings(&database).await, []);
    for mighty in [database.owner(), database.superuser()] {
        let found = findings(&mighty).await;
        assert!(
            found.len() == 1 && found[0].severity == Severity::Hint,
            "{found:?}"
        );
    }
}

/// As hosting providers set them up for the roles of their own interfaces.
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
    for (what, topic) in [
        (
            "anon has select on table public.notifications",
            Subject::Read,
        ),
        (
            "anon has execute on function public.create_stream_ticket(user_id text, ttl interval)",
            Subject::Read,
        ),
        (
            "anon has update on table public.notifications",
            Subject::Wide,
        ),
        (
            "anon has select on table public.stream_tickets",
            Subject::Wide,
        ),
        ("anon has execute on all new functions", Subject::Wide),
    ] {
        let is_it = |finding: &&Finding| finding.found == what;
        let finding = found
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("{what}: {found:?}"));
        assert_eq!(finding.topic, topic, "{what}");
    }
    // Each finding has a fix, and the fix works.
    for finding in &found {
        fix(&database, finding).await;
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
            "do $$ begin execute format('revoke execute on function %s from tidings_bridge', \
             (select oid::regprocedure from pg_proc where proname = 'tidings_report')); end $$",
            "tidings_report",
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
            "revoke execute on function tidings_report_readiness from tidings_bridge",
            "tidings_report_readiness",
        ),
        (
            "revoke execute on function tidings_report_topics from tidings_bridge",
            "tidings_report_topics",
        ),
        (
            "revoke insert on tidings_incarnation from tidings_bridge",
            "insert on table public.tidings_incarnation",
        ),
        (
            "revoke select on tidings_incarnation from tidings_bridge",
            "select on table public.tidings_incarnation",
        ),
        (
            "revoke execute on function pg_notification_queue_usage() from public, tidings_bridge",
            "pg_notification_queue_usage()",
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
        // Members of tidings_writer may have this privilege, but not public.
        (
            "grant select (id) on notifications to public",
            "public has select (id) on table public.notifications",
        ),
        (
            "grant execute on function send_notification(text, text, text, timestamptz, text) to public",
            "public has execute on function public.send_notification",
        ),
    ];
    for (statement, expected) in breaking {
        database.superuser().execute(statement).await;
        let found = findings(&database).await;
        let wrong: Vec<&Finding> = found.iter().filter(|found| found.is_wrong()).collect();
        assert!(!wrong.is_empty(), "{statement}");
        assert!(
            wrong.iter().any(|found| found.found.contains(expected)),
            "{statement}: {found:?}"
        );
        for finding in found {
            fix(&database, &finding).await;
        }
        assert_eq!(findings(&database).await, [], "{statement}");
    }
}
