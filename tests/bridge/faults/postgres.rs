//! Processes of Postgres are terminated, killed and frozen. Streams stay open.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::Shutdown;
use tokio::time::timeout;

use super::load::Load;
use crate::support::{
    PATIENCE,
    account::Account,
    bridge::Bridge,
    database::{Database, start_cluster},
    frozen::Frozen,
    until,
};

/// The contract: a listener that receives nothing turns readiness red within this time.
const NOTICED: Duration = Duration::from_secs(15);

/// How long the bridge waits for the response to a query.
const ONE_WAIT: Duration = Duration::from_secs(10);

/// The bridge's sessions.
const SESSIONS: &str = "pg_stat_activity where datname = current_database() \
                        and application_name = 'tidings'";

/// Waits until all of the bridge's sessions are idle, and returns those that match `which`.
async fn sessions(database: &Database, which: &str) -> Vec<i32> {
    let superuser = database.superuser();
    superuser
        .until(&format!("select bool_and(state = 'idle') from {SESSIONS}"))
        .await;
    let query = format!("select pid from {SESSIONS} and {which}");
    let rows = superuser.connect().await.query(&query, &[]).await;
    rows.expect("sessions")
        .iter()
        .map(|row| row.get(0))
        .collect()
}

async fn all_is_sent(database: &Database) {
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_ended_under_load_are_replaced() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &["--queue-bytes=4096"]).await;
    let load = Load::start(&database, &[bridge.address()]).await;
    let mut account = Account::without_repeats("sessions of the bridge are terminated");
    for _ in 0..10 {
        load.writes(20).await;
        database
            .superuser()
            .execute(&format!("select pg_terminate_backend(pid) from {SESSIONS}"))
            .await;
        account.recovered_after(load.flows().await);
    }
    assert_eq!(load.breaks(), 0, "no stream ends");
    load.end(&mut account).await;
    all_is_sent(&database).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_backend_is_frozen_takes_another() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    // The listener is identified by its last query: it alone queries the rows of all users, the
    // trigger, the doorbell and the logouts.
    let listener = "query ~ 'rows, of all users|tgenabled|tidings_bell|tidings_disconnections'";
    let finding = async {
        loop {
            // From time to time its last query is another one.
            let found = sessions(&database, listener).await;
            if found.len() == 1 {
                return found;
            }
        }
    };
    let listener = timeout(PATIENCE, finding).await.expect("one listens");
    let load = Load::start(&database, &[bridge.address()]).await;
    let mut account = Account::without_repeats("backend of the listener is frozen");
    let calm = load.calm().await;
    let frozen = Frozen::between_queries(&database, &listener).await;
    drop(calm);
    let start = Instant::now();
    bridge.until_ready_is(503).await;
    let noticed = start.elapsed();
    assert!(noticed < NOTICED, "it took {noticed:?}");
    bridge.until_ready_is(200).await;
    load.flows().await;
    account.recovered_after(start.elapsed());
    drop(frozen);
    load.flows().await;
    assert_eq!(load.breaks(), 0, "no stream ends");
    load.end(&mut account).await;
    all_is_sent(&database).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_frozen_cost_one_wait_and_not_one_each() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let load = Load::start(&database, &[bridge.address()]).await;
    let mut account = Account::without_repeats("all backends of the bridge are frozen");
    load.writes(20).await;
    let calm = load.calm().await;
    all_is_sent(&database).await;
    let frozen = Frozen::between_queries(&database, &sessions(&database, "true").await).await;
    drop(calm);
    let start = Instant::now();
    // Pages are read in sessions that are independent of the listener's.
    let mut newcomer = bridge.connect("dave").await;
    until(&mut newcomer, "tidings.caught-up").await;
    load.flows().await;
    account.recovered_after(start.elapsed());
    // One wait per session would add up to six.
    assert!(start.elapsed() < 3 * ONE_WAIT, "{:?}", start.elapsed());
    drop(frozen);
    assert_eq!(load.breaks(), 0, "no stream ends");
    load.end(&mut account).await;
    all_is_sent(&database).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_freezes_and_thaws_is_connected_again() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let load = Load::start(&database, &[bridge.address()]).await;
    let mut account = Account::without_repeats("all of Postgres is frozen");
    for _ in 0..2 {
        load.writes(20).await;
        let frozen = Frozen::freeze(&cluster).await;
        bridge.until_ready_is(503).await;
        drop(frozen);
        account.recovered_after(load.flows().await);
        bridge.until_ready_is(200).await;
    }
    assert_eq!(load.breaks(), 0, "no stream ends");
    load.end(&mut account).await;
    all_is_sent(&database).await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_and_restarted_has_lost_nothing() {
    let mut cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let load = Load::start(&database, &[bridge.address()]).await;
    let mut account = Account::with_repeats(
        "Postgres is killed and restarted",
        "transaction ids may be used again",
    );
    for _ in 0..3 {
        load.writes(30).await;
        let postmaster = cluster.postmaster_pid().expect("a server");
        kill(Pid::from_raw(postmaster), Signal::SIGKILL).expect("a signal");
        bridge.until_ready_is(503).await;
        cluster
            .restart(Shutdown::Immediate)
            .await
            .expect("a restart");
        account.recovered_after(load.flows().await);
        bridge.until_ready_is(200).await;
    }
    assert_eq!(load.breaks(), 0, "no stream ends");
    load.end(&mut account).await;
    account.close();
}
