//! Settings that a database or a role has for its applications don't affect the bridge, the command
//! line or our functions.

use clap::Parser;
use futures_util::future::join_all;
use private_postgres::Cluster;
use tidings::{
    check::{self, Installation},
    config::{Cli, Command},
    postgres::{connect, schema::SchemaName},
};
use tokio_postgres::error::SqlState;

use crate::support::{
    bridge::Bridge,
    database::{Database, shared_cluster},
    event_source::EventSource,
    pooler::Pooler,
    until,
};

/// Settings that sessions of the roles start with, each as far from its default as possible.
/// Settings that the server doesn't know are skipped.
const SETTINGS: &[(&str, &str)] = &[
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("row_security", "on"),
    ("search_path", "nowhere"),
    ("datestyle", "SQL, DMY"),
    ("intervalstyle", "sql_standard"),
    ("timezone", "Asia/Kathmandu"),
    ("bytea_output", "escape"),
    ("client_encoding", "LATIN1"),
    ("extra_float_digits", "-15"),
    ("standard_conforming_strings", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("lock_timeout", "1s"),
    ("quote_all_identifiers", "on"),
    ("synchronous_commit", "off"),
    ("work_mem", "64kB"),
    ("plan_cache_mode", "force_custom_plan"),
    ("jit", "on"),
    ("jit_above_cost", "0"),
    ("jit_inline_above_cost", "0"),
    ("jit_optimize_above_cost", "0"),
    ("join_collapse_limit", "1"),
    ("from_collapse_limit", "1"),
    ("random_page_cost", "1000"),
    ("parallel_setup_cost", "0"),
    ("parallel_tuple_cost", "0"),
    ("min_parallel_table_scan_size", "0"),
    ("max_parallel_workers_per_gather", "8"),
    ("plpgsql.variable_conflict", "use_variable"),
    ("plpgsql.extra_errors", "all"),
    ("plpgsql.extra_warnings", "all"),
];

/// Gives every role these settings in this database, and turns off all planner methods.
async fn inherit(database: &Database, roles: &[&str], more: &[(&str, &str)]) {
    let superuser = database.superuser().connect().await;
    let methods = "select name::text from pg_settings where name like 'enable\\_%' \
                   and vartype = 'bool'";
    let methods = superuser.query(methods, &[]).await.expect("methods");
    let methods = methods.iter().map(|row| (row.get(0), "off".to_owned()));
    let settings = SETTINGS.iter().chain(more);
    let settings = settings.map(|&(name, value)| (name.to_owned(), value.to_owned()));
    // Loads plpgsql, so that its settings are known.
    superuser
        .batch_execute("do language plpgsql $$ begin end $$")
        .await
        .expect("a language");
    let name = database.name();
    for (setting, value) in methods.chain(settings) {
        let known = "select current_setting($1, true) is not null";
        let row = superuser.query_one(known, &[&setting]).await.expect(known);
        if !row.get::<_, bool>(0) {
            continue;
        }
        // A list setting must not be quoted as a whole.
        let value = match setting.as_str() {
            "search_path" | "datestyle" => value,
            _ => format!("'{value}'"),
        };
        for role in roles {
            let set = format!("alter role {role} in database {name} set {setting} = {value}");
            superuser.batch_execute(&set).await.expect(&set);
        }
    }
}

/// Settings for our roles only: they would break an application's own sessions.
const OURS_ALONE: &[(&str, &str)] = &[
    ("default_transaction_read_only", "on"),
    // With it, an application's INSERTs would send no NOTIFY.
    ("session_replication_role", "replica"),
    ("statement_timeout", "2s"),
    ("idle_in_transaction_session_timeout", "1s"),
    ("idle_session_timeout", "1s"),
    ("transaction_timeout", "2s"),
];

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_database_for_its_applications_change_nothing() {
    change_nothing(&Database::empty().await, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_database_change_nothing_through_a_pooler() {
    change_nothing(&Database::empty().await, Some(shared_cluster())).await;
}

async fn change_nothing(database: &Database, pooled_before: Option<&Cluster>) {
    inherit(database, &["migrator", "bridge", "dashboard"], OURS_ALONE).await;
    inherit(database, &["application"], &[]).await;
    database.migrate().await;
    let pooler = match pooled_before {
        None => None,
        Some(cluster) => Some(Pooler::before(cluster).await),
    };
    let bridge = match &pooler {
        None => Bridge::start(database).await,
        Some(pooler) => {
            let direct = ["--direct-database-url", &database.connection_string()];
            Bridge::start_with(&pooler.database(database), &direct).await
        }
    };
    let mut alice = bridge.connect_live("alice").await;
    let application = database.connect().await;
    let write = "insert into public.notifications (user_id, text, event, expires_at) \
                 values ('alice', $1, 'kind', now() + interval '1 hour')";
    for n in 0..20 {
        let text = format!("row {n} – ü");
        application.execute(write, &[&text]).await.expect(write);
        assert_eq!(alice.next_event().await.data, text);
    }
    let superuser = database.superuser();
    superuser
        .until("select bool_and(sent) from public.notifications")
        .await;
    // One stream resumes, the other one starts with the backlog.
    let id = alice.last_event_id().to_owned();
    drop(alice);
    for user in ["alice", "bob"] {
        let send = "select public.send_notification($1::text, 'while away')";
        application.query_one(send, &[&user]).await.expect(send);
    }
    let mut resumed = bridge.resume("alice", &id).await;
    assert_eq!(resumed.next_event().await.data, "while away");
    let mut bob = bridge.connect("bob").await;
    assert_eq!(bob.next_event().await.data, "while away");
    until(&mut bob, "tidings.caught-up").await;
    // Functions in the application's own session.
    let ticket = "select public.create_stream_ticket('carol', '30 minutes')";
    let ticket: String = application
        .query_one(ticket, &[])
        .await
        .expect(ticket)
        .get(0);
    let path = format!("/stream?ticket={ticket}");
    let mut carol = EventSource::open(bridge.address(), &path, &[]).await;
    until(&mut carol, "tidings.caught-up").await;
    for call in [
        "select public.disconnect_user('bob')",
        "select public.disconnect_everyone()",
    ] {
        application.batch_execute(call).await.expect(call);
    }
    for mut ended in [bob, carol, resumed] {
        ended.rest().await;
    }
    superuser
        .until("select count(*) = 1 from public.tidings_bridges_seen")
        .await;
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
    assert_eq!(report.expect("findings").findings, []);
    database.migrate().await;
    bridge.until_ready_is(200).await;
    bridge.stop().await;
}

/// On a large table, creating an index takes longer than any query of a bridge may.
#[tokio::test(flavor = "multi_thread")]
async fn migrations_may_take_as_long_as_they_need() {
    let database = Database::empty().await;
    inherit(&database, &["migrator"], OURS_ALONE).await;
    let connected = connect::connect_pinned(&database.owner().url()).await;
    let (session, _driver) = connected.expect("a session");
    for timeout in ["statement_timeout", "lock_timeout"] {
        let shown = session.query_one(&format!("show {timeout}"), &[]).await;
        assert_eq!(shown.expect(timeout).get::<_, &str>(0), "0", "{timeout}");
    }
}

/// A database in which every transaction is serializable by default.
async fn serializable() -> Database {
    let database = Database::migrated().await;
    let name = database.name();
    let set = format!("alter database {name} set default_transaction_isolation = 'serializable'");
    database.superuser().execute(&set).await;
    database
}

/// The application reads rows that the bridge marks, and writes rows that the bridge reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_serializable_application_never_fails_because_of_the_bridge() {
    let database = serializable().await;
    let grant = "grant select on notifications to application";
    database.superuser().execute(grant).await;
    let bridge = Bridge::start(&database).await;
    let mut alice = bridge.connect_live("alice").await;
    let application = database.connect().await;
    let count = "insert into notifications (user_id, text) \
                 select 'alice', count(*)::text from notifications where user_id = 'alice'";
    for n in 0..300 {
        application.execute(count, &[]).await.expect(count);
        if n % 3 == 0 {
            alice.next_event().await;
        }
    }
    bridge.stop().await;
}

/// Each client's transactions use a different user.
#[tokio::test(flavor = "multi_thread")]
async fn serializable_calls_of_our_functions_never_fail_because_of_each_other() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 40;
    let database = serializable().await;
    let old = "insert into stream_tickets select sha256(n::text::bytea), 'old', now() - interval '2 days', \
                 now() - interval '1 day' from generate_series(1, 2000) as n; \
               insert into tidings_disconnections (user_id, created_at) \
                 select 'old', now() - interval '2 days' from generate_series(1, 2000)";
    database.superuser().execute(old).await;
    let bridge = Bridge::start(&database).await;
    let streams =
        join_all((0..CLIENTS).map(async |n| bridge.connect_live(&format!("user {n}")).await)).await;
    let failures = join_all((0..CLIENTS).map(async |client| {
        let session = database.connect().await;
        let user = format!("user {client}");
        let mut failures = Vec::new();
        for _ in 0..ROUNDS {
            for statement in [
                "insert into notifications (user_id, text) values ($1, 'x') returning id::text",
                "select send_notification($1::text, 'y')::text",
                "select create_stream_ticket($1::text)",
                "select disconnect_user($1 || ' elsewhere')::text",
            ] {
                if let Err(error) = session.query(statement, &[&user]).await {
                    assert_eq!(
                        error.code(),
                        Some(&SqlState::T_R_SERIALIZATION_FAILURE),
                        "{error}"
                    );
                    failures.push(statement);
                }
            }
        }
        failures
    }))
    .await;
    drop(streams);
    assert_eq!(failures.concat(), [""; 0]);
    bridge.stop().await;
}
