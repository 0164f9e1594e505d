//! Any role that can connect can hold the advisory locks of Tidings. That prevents no bridge from
//! starting, no application from writing and no row from being delivered, and `check` and `migrate`
//! report which session holds the lock.

use std::time::{Duration, Instant};

use private_postgres::Cluster;

use super::{
    command, run,
    state::{both_are_content, found_and_fixed},
};
use crate::support::{database::Database, process::Served};

/// The key expressions that a stranger locks to hold each of the locks.
const LOCKS: [(&str, &str); 3] = [
    (
        "for migrations",
        "hashtextextended('tidings migrate public', 0)",
    ),
    (
        "whether writers send NOTIFY",
        "1953064041, 'public.notifications'::regclass::oid::int",
    ),
    (
        "for removing old rows",
        "1953064048, 'public.notifications'::regclass::oid::int",
    ),
];

/// A role that can connect and has no other privileges.
async fn stranger(database: &Database) -> Database {
    let name = format!("stranger_in_{}", database.name());
    let create = format!("create role {name} login");
    database.superuser().execute(&create).await;
    database.as_role(&name)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_all_locks_keeps_no_bridge_from_starting_delivering_and_removing() {
    let database = Database::migrated().await;
    let fill = "insert into notifications (user_id, text, created_at, sent_at) \
                select 'bob', 'sent', now() - interval '3 hours', now() - interval '2 hours' \
                from generate_series(1, 10)";
    database.owner().execute(fill).await;
    let holder = stranger(&database).await.connect().await;
    for (_, key) in LOCKS {
        let take = format!("select pg_advisory_lock({key})");
        holder.batch_execute(&take).await.expect(&take);
    }
    let begin = Instant::now();
    let settings = ["--prune-sent-after=1h", "--prune-every=1s"];
    let mut served = Served::start(&database, &settings).await;
    assert!(begin.elapsed() < Duration::from_secs(20));
    served
        .until_logged("WARN", "holds the advisory lock for removing old rows")
        .await;
    let mut source = served.connect_live("alice").await;
    for n in 0..5 {
        let send = format!("select send_notification('alice', 'row {n}')");
        let begin = Instant::now();
        database.execute(&send).await;
        assert_eq!(source.next_event().await.data, format!("row {n}"));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    database
        .until("select count(*) = 0 from notifications where user_id = 'bob'")
        .await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_a_lock_is_found_and_ended() {
    for (text, key) in LOCKS {
        let database = Database::migrated().await;
        both_are_content(&database, &[]).await;
        let holder = stranger(&database).await.connect().await;
        let take = format!("select pg_advisory_lock({key})");
        holder.batch_execute(&take).await.expect(&take);
        found_and_fixed(&database, &[], "lock", text).await;
    }
    // A bridge's own lock is no finding.
    let database = Database::migrated().await;
    let served = Served::start(&database, &["--prune-sent-after=1h"]).await;
    database
        .until("select exists (select from pg_locks where classid = 1953064048 and objid = 'notifications'::regclass)")
        .await;
    both_are_content(&database, &[]).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_names_who_holds_its_lock_and_leaves_a_current_schema_in_use() {
    let key = LOCKS[0].1;
    let migrate =
        async |database: &Database| run(&database.owner(), &["migrate", "--lock-limit=1s"]).await;
    let expected = |database: &Database, text: &str| {
        let name = format!("stranger_in_{}", database.name());
        for expected in [
            name.as_str(),
            "It is held by backend ",
            "(select pg_terminate_backend(",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    };
    // Nothing to migrate.
    let database = Database::migrated().await;
    let holder = stranger(&database).await.connect().await;
    let take = format!("select pg_advisory_lock({key})");
    holder.batch_execute(&take).await.expect(&take);
    let said = migrate(&database).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    expected(&database, &said.error);
    // Only roles with that privilege can see how long it has been held.
    assert!(said.error.contains("grant pg_read_all_stats"), "{said:?}");
    let mut as_superuser = command(&["migrate", "--lock-limit=1s"]);
    as_superuser.env("DATABASE_URL", database.superuser().connection_string());
    let said = super::said(as_superuser, "").await;
    assert!(said.error.contains(", since 20"), "{said:?}");

    // Something to migrate.
    let database = Database::empty().await;
    let holder = stranger(&database).await.connect().await;
    holder.batch_execute(&take).await.expect(&take);
    let said = migrate(&database).await;
    expected(&database, &said.badly());
    holder
        .batch_execute("select pg_advisory_unlock_all()")
        .await
        .expect("an end");
    migrate(&database).await.well();
}

/// There is no session that could be terminated.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_holds_a_lock_is_found_and_ended() {
    let settings = [
        ("max_connections", "100"),
        ("max_prepared_transactions", "10"),
    ];
    let cluster = Cluster::temporary(&settings).await.expect("a PostgreSQL");
    let database = Database::migrated_in(&cluster).await;
    let holder = stranger(&database).await.connect().await;
    let key = LOCKS[0].1;
    let prepare =
        format!("begin; select pg_advisory_xact_lock({key}); prepare transaction 'forgotten'");
    holder.batch_execute(&prepare).await.expect(&prepare);
    let said = run(&database.owner(), &["migrate", "--lock-limit=1s"]).await;
    assert!(
        said.error.contains("the prepared transaction forgotten")
            && said.error.contains("(rollback prepared 'forgotten';)"),
        "{said:?}"
    );
    found_and_fixed(
        &database,
        &[],
        "lock",
        "the prepared transaction 'forgotten'",
    )
    .await;
    cluster.stop().await.expect("an end");
}
