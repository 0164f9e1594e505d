//! A role gains nothing from objects that it created before Tidings was installed.

use clap::Parser;
use private_postgres::Cluster;
use tidings::{
    check::{self, Finding, Fix, Installation, Subject},
    config::{Cli, Command},
    postgres::schema::{self, SchemaError, SchemaName},
};

use crate::support::{
    database::{Database, start_cluster},
    process::Served,
};

async fn migrate(database: &Database) -> Result<(), SchemaError> {
    schema::migrate(&database.url(), &SchemaName::public(), schema::LOCK_LIMIT).await
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

async fn text(database: &Database, query: &str) -> Option<String> {
    let client = database.superuser().connect().await;
    let row = client.query_opt(query, &[]).await.expect(query);
    row.and_then(|row| row.get(0))
}

const OWNER: &str =
    "select relowner::regrole::text from pg_class where oid = to_regclass('public.notifications')";

const HISTORY: &str = "create table public.tidings_schema_history (version int4 primary key, \
                       name varchar(255), applied_on varchar(255), checksum varchar(255))";

/// A database in a cluster of its own, in which mallory may create objects and no role of Tidings
/// exists.
async fn with_mallory(cluster: &Cluster) -> (Database, Database) {
    let database = Database::bare(cluster, "shared").await;
    // PUBLIC has it by default before PostgreSQL 15.
    let make = "create role mallory login; grant create on schema public to public";
    database.superuser().execute(make).await;
    let mallory = database.as_role("mallory");
    (database, mallory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_another_role_made_makes_it_the_owner_of_nothing() {
    let cluster = start_cluster().await;
    let (database, mallory) = with_mallory(&cluster).await;
    mallory.execute(HISTORY).await;
    let superuser = database.superuser();
    let refused = migrate(&superuser)
        .await
        .expect_err("a refusal")
        .to_string();
    for part in [
        "belongs to mallory",
        "--from=mallory",
        "drop table \"public\".tidings_schema_history;",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let dry_run = schema::plan(&superuser.url(), &SchemaName::public()).await;
    assert!(matches!(dry_run, Err(SchemaError::Stranger { .. })));
    let refused = superuser.run_roles("public").await.expect_err("a refusal");
    assert!(refused.contains("belongs to mallory"), "{refused}");
    assert_eq!(text(&database, OWNER).await, None);
    // As the message advises.
    superuser
        .execute("drop table \"public\".tidings_schema_history;")
        .await;
    assert_eq!(superuser.run_roles("public").await, Ok(String::new()));
    migrate(&superuser).await.expect("the migrations");
    assert_eq!(
        text(&database, OWNER).await.as_deref(),
        Some("tidings_owner")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_role_installed_is_handed_over_only_if_it_is_named_and_without_its_additions()
{
    let cluster = start_cluster().await;
    let (database, mallory) = with_mallory(&cluster).await;
    let superuser = database.superuser();
    superuser.execute("create role eve login").await;
    // Mallory is entitled to install Tidings.
    migrate(&mallory).await.expect("the migrations");
    mallory
        .execute(
            "grant all on notifications to eve with grant option; \
             grant select (text) on notifications to public; \
             grant execute on function create_stream_ticket(text, interval) to eve; \
             grant select on tidings_pending to eve; \
             create function tidings_shell(what text) returns void language plpgsql \
               security definer as 'begin execute what; end'; \
             create function send_notification(what text) returns void language plpgsql \
               security definer as 'begin execute what; end'",
        )
        .await;
    assert!(matches!(
        migrate(&superuser).await,
        Err(SchemaError::Stranger { .. })
    ));
    let refused = superuser.run_roles("public").await.expect_err("a refusal");
    assert!(refused.contains("-v from=mallory"), "{refused}");
    assert_eq!(text(&database, OWNER).await.as_deref(), Some("mallory"));

    let found = findings(&superuser).await;
    let fix = found
        .iter()
        .find(|found| found.topic == Subject::Owner)
        .map(|it| it.fix.clone());
    let command = "tidings roles --schema='public' --from='mallory' | psql";
    assert_eq!(fix, Some(Fix::Command(command.to_owned())));
    let handed = superuser
        .run_roles_with(&["schema=public", "from=mallory"])
        .await;
    handed.expect("a handover");
    let of_mallory = "select string_agg(oid::regprocedure::text, ' ' order by oid::regprocedure::text) from pg_proc \
                      where pronamespace = 'public'::regnamespace \
                        and proowner <> 'tidings_owner'::regrole";
    assert_eq!(
        text(&database, of_mallory).await.as_deref(),
        Some("send_notification(text) tidings_shell(text)")
    );
    let relations = "select string_agg(oid::regclass::text, ' ') from pg_class \
                     where relnamespace = 'public'::regnamespace \
                       and relowner <> 'tidings_owner'::regrole";
    assert_eq!(text(&database, relations).await, None);
    for role in ["eve", "mallory"] {
        let rights = format!(
            "select string_agg(what, ' ') from ( \
               select oid::regclass::text as what from pg_class \
               where relnamespace = 'public'::regnamespace and relkind in ('r', 'v') \
                 and (has_table_privilege('{role}', oid, 'select, insert, update, delete') \
                   or has_any_column_privilege('{role}', oid, 'select, insert, update')) \
               union all \
               select oid::regprocedure::text from pg_proc \
               where pronamespace = 'public'::regnamespace \
                 and proowner = 'tidings_owner'::regrole \
                 and has_function_privilege('{role}', oid, 'execute')) r"
        );
        assert_eq!(text(&database, &rights).await, None, "{role}");
    }
    migrate(&superuser).await.expect("the migrations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_without_its_objects_is_refused() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "partial").await;
    let superuser = database.superuser();
    migrate(&superuser).await.expect("the migrations");
    let copied = "create schema elsewhere; \
                  create table elsewhere.tidings_schema_history as table tidings_schema_history";
    superuser.execute(copied).await;
    let elsewhere: SchemaName = "elsewhere".parse().expect("a name");
    let refused = schema::migrate(&superuser.url(), &elsewhere, schema::LOCK_LIMIT).await;
    let refused = refused.expect_err("a refusal").to_string();
    assert!(
        refused.contains("create_stream_ticket is missing")
            && refused.contains("drop table \"elsewhere\".tidings_schema_history;"),
        "{refused}"
    );
    // One object that belongs to another role.
    superuser
        .execute("create role mallory login; alter table public.stream_tickets owner to mallory")
        .await;
    let refused = migrate(&superuser)
        .await
        .expect_err("a refusal")
        .to_string();
    assert!(
        refused.contains("stream_tickets belongs to mallory"),
        "{refused}"
    );
    let found = findings(&superuser).await;
    let is_owner = |found: &&Finding| found.topic == Subject::Owner;
    let fix = found.iter().find(is_owner).expect("a finding").fix.clone();
    let given = "alter table public.stream_tickets owner to tidings;";
    assert_eq!(fix, Fix::Sql(given.to_owned()));
    superuser.execute(given).await;
    assert!(
        !findings(&superuser)
            .await
            .iter()
            .any(|found| is_owner(&found))
    );
}

/// Every object that migrations create is on the list of `sql/roles.sql`.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_migrations_make_is_handed_over() {
    let cluster = start_cluster().await;
    let database = Database::bare(&cluster, "handed").await;
    let superuser = database.superuser();
    migrate(&superuser).await.expect("the migrations");
    superuser.run_roles("public").await.expect("the roles");
    let left = "select string_agg(what, ' ') from ( \
                  select oid::regclass::text as what from pg_class \
                  where relnamespace = 'public'::regnamespace \
                    and relowner <> 'tidings_owner'::regrole \
                  union all \
                  select oid::regprocedure::text from pg_proc \
                  where pronamespace = 'public'::regnamespace \
                    and proowner <> 'tidings_owner'::regrole) as others";
    assert_eq!(text(&database, left).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_may_create_in_the_schema_are_listed_with_the_statement_that_ends_it() {
    let database = Database::migrated().await;
    let superuser = database.superuser();
    superuser
        .execute(
            "do $$ begin create role django; \
             exception when duplicate_object or unique_violation then null; end $$; \
             grant create on schema public to public, django, tidings_writer, bridge",
        )
        .await;
    let mut bridge = Served::start(&database, &[]).await;
    bridge
        .until_logged("WARN", "django has create on schema public")
        .await;
    let found = findings(&database).await;
    let texts: Vec<_> = found.iter().map(|it| it.found.as_str()).collect();
    assert_eq!(
        texts,
        ["bridge", "django", "public", "tidings_writer"]
            .map(|role| format!("{role} has create on schema public"))
    );
    for finding in &found {
        superuser.execute(&finding.fix.to_string()).await;
    }
    assert_eq!(findings(&database).await, []);
}
