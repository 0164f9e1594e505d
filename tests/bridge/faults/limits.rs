//! Postgres runs out of a resource, or is configured to allow less. The bridge reports what is
//! wrong and recovers on its own afterwards.

use std::time::{Duration, Instant};

use private_postgres::Cluster;
use tokio::time::timeout;
use tokio_postgres::{Client, error::SqlState};

use crate::support::{
    PATIENCE,
    account::Account,
    database::{Database, try_connect},
    process::Served,
    rows, until,
};

/// `max_connections` of the cluster.
const CONNECTIONS: usize = 12;

/// Deadline for readiness to turn red when rows can't be marked.
const SHOWS_WITHIN: Duration = Duration::from_secs(15);

const ALL_SENT: &str = "select bool_and(sent) from notifications";

/// Ends the bridge's sessions, so that the next ones get the database's new settings.
async fn end_sessions(client: &Client) {
    let end = "select pg_terminate_backend(pid) from pg_stat_activity \
        where datname = current_database() and application_name = 'tidings'";
    client.batch_execute(end).await.expect(end);
}

/// Changes a setting of the database for new sessions.
async fn alter_database(client: &Client, change: &str) {
    let alter = format!(
        "do $$ begin execute format('alter database %I {change}', current_database()); end $$"
    );
    client.batch_execute(&alter).await.expect(change);
}

async fn insert(client: &Client, user: &str, count: usize, bytes: usize) -> Vec<i64> {
    let insert = format!(
        "insert into notifications (user_id, text) \
         select '{user}', repeat('x', {bytes}) from generate_series(1, {count}) returning id"
    );
    let rows = client.query(&insert, &[]).await.expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Takes every connection except `control`, ending the bridge's sessions until none is left to it.
async fn take_all_connections(database: &Database, control: &Client) -> Vec<Client> {
    let mut taken = Vec::new();
    let taking = async {
        while taken.len() < CONNECTIONS - 1 {
            match try_connect(&database.application_string()).await {
                Ok(client) => taken.push(client),
                Err(error) => {
                    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
                    end_sessions(control).await;
                }
            }
        }
    };
    timeout(PATIENCE, taking).await.expect("all connections");
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_gets_no_connection_says_so_and_comes_back_when_there_is_one() {
    let mut account = Account::without_repeats("Postgres has too many connections");
    let connections = CONNECTIONS.to_string();
    let few = [
        ("max_connections", connections.as_str()),
        ("superuser_reserved_connections", "0"),
    ];
    let cluster = Cluster::temporary(&few).await.expect("a cluster");
    let database = Database::migrated_in(&cluster).await;
    let mut bridge = Served::start(&database, &["--pool-size=2"]).await;
    let mut alice = bridge.connect_live("alice").await;
    let bob = bridge.connect_live("bob").await.last_event_id().to_owned();
    let control = database.superuser().connect().await;

    for _ in 0..3 {
        let taken = take_all_connections(&database, &control).await;
        let owed = insert(&control, "alice", 10, 10).await;
        let owed_to_bob = insert(&control, "bob", 1, 10).await;
        bridge.until_logged("WARN", "too many clients").await;
        bridge.until_deaf("too many clients").await;
        // A client that connects now gets a response at once, and waits.
        let mut waiting = bridge.connect("bob", Some(&bob)).await;
        assert!(waiting.next_item().await.is_ok());

        drop(taken);
        let freed = Instant::now();
        account.client(owed, &rows(&mut alice, 10).await);
        account.recovered_after(freed.elapsed());
        let missed = until(&mut waiting, "tidings.caught-up").await;
        assert_eq!(
            missed.last().map(crate::support::row_id),
            owed_to_bob.last().copied()
        );
        bridge.until_ready_is(200).await;
    }
    database.until(ALL_SENT).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_timeout_of_the_database_is_not_the_bridges() {
    let mut account = Account::without_repeats("statement_timeout is shorter than a look takes");
    let database = Database::migrated().await;
    let control = database.superuser().connect().await;
    let bridge = Served::start(&database, &[]).await;
    let mut alice = bridge.connect_live("alice").await;
    let id = alice.last_event_id().to_owned();
    alter_database(&control, "set statement_timeout = ''1ms''").await;
    end_sessions(&control).await;
    let owed = insert(&control, "alice", 3_000, 1_000).await;
    let start = Instant::now();
    account.client(owed.clone(), &rows(&mut alice, 3_000).await);
    account.recovered_after(start.elapsed());
    let mut second = bridge.connect("alice", Some(&id)).await;
    account.client(owed, &rows(&mut second, 3_000).await);
    bridge.until_ready_is(200).await;
    alter_database(&control, "reset statement_timeout").await;
    database.until(ALL_SENT).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_may_not_mark_writes_its_marks_once_it_may() {
    let mut account =
        Account::without_repeats("the right to mark is taken away: marks can't be written");
    let database = Database::migrated().await;
    let control = database.superuser().connect().await;
    let mut bridge = Served::start(&database, &[]).await;
    let mut alice = bridge.connect_live("alice").await;

    let revoke = "revoke update (sent_at) on notifications from tidings_bridge";
    control.batch_execute(revoke).await.expect(revoke);
    let owed = insert(&control, "alice", 10, 10).await;
    // Rows are delivered even though they can't be marked.
    account.client(owed, &rows(&mut alice, 10).await);
    let delivered = Instant::now();
    bridge
        .until_logged("WARN", "permission denied for table notifications")
        .await;
    bridge
        .until_unmarked("permission denied for table notifications")
        .await;
    // The failure may be transient, so readiness stays green at first. If it persists, readiness
    // turns red within the time of promise 10.
    bridge.until_ready_is(200).await;
    bridge.until_ready_is(503).await;
    let red_after = delivered.elapsed();
    assert!(red_after < SHOWS_WITHIN, "{red_after:?}");
    bridge
        .until_deaf("permission denied for table notifications")
        .await;
    let unsent = "select not bool_or(sent) from notifications";
    let unsent: bool = control.query_one(unsent, &[]).await.expect(unsent).get(0);
    assert!(unsent, "rows were marked without the right to");

    let grant = "grant update (sent_at) on notifications to tidings_bridge";
    control.batch_execute(grant).await.expect(grant);
    let reset = Instant::now();
    database.until(ALL_SENT).await;
    account.recovered_after(reset.elapsed());
    bridge.until_ready_is(200).await;
    let body = bridge.ready().await.text().await;
    assert!(!body.contains("marks"), "{body}");
    account.close();
}
