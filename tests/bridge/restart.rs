//! The database goes away and comes back; streams stay open.

use tidings::cluster::Shutdown;

use crate::support::{
    bridge::Bridge,
    database::{Database, start_cluster},
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn streams_stay_open_over_a_restart_of_postgres_and_get_what_comes_after_it() {
    let mut cluster = start_cluster().await;
    let database = Database::empty_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    for (round, shutdown) in [Shutdown::Fast, Shutdown::Immediate]
        .into_iter()
        .enumerate()
    {
        let before = format!("before restart {round}");
        database
            .execute(&format!("select send_notification('alice', '{before}')"))
            .await;
        assert_eq!(source.next_event().await.data, before);
        cluster.restart(shutdown).await.expect("a restart");
        let after = format!("after restart {round}");
        database
            .execute(&format!("select send_notification('alice', '{after}')"))
            .await;
        assert_eq!(source.next_event().await.data, after);
    }
    // Whoever connects now finds the pool well again, and nothing to catch up
    // with once all is marked.
    database
        .until("select bool_and(sent) from notifications")
        .await;
    let mut second = bridge.connect("alice").await;
    assert_eq!(until(&mut second, "tidings.caught-up").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_session_is_ended_comes_back_and_catches_up() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    for round in 0..5 {
        // In one transaction: the row becomes visible as the listener loses its
        // session.
        database
            .execute(&format!(
                "begin; select send_notification('alice', 'row {round}'); \
                 select pg_terminate_backend(pid) from pg_stat_activity \
                 where datname = current_database() and application_name = 'tidings'; \
                 commit"
            ))
            .await;
        assert_eq!(source.next_event().await.data, format!("row {round}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_while_the_database_is_away_is_served_when_it_is_back() {
    let mut cluster = start_cluster().await;
    let database = Database::empty_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    database
        .execute("select send_notification('alice', 'hello')")
        .await;
    let stopped = cluster.postmaster_pid().expect("a server");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(stopped),
        nix::sys::signal::Signal::SIGQUIT,
    )
    .expect("a signal");
    // Its first bytes don't wait for the database.
    let mut source = bridge.connect("alice").await;
    assert!(source.next_item().await.is_ok());
    cluster.restart(Shutdown::Fast).await.expect("a restart");
    assert_eq!(source.next_event().await.data, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_ring_no_bell_are_found_all_the_same() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    database
        .execute(
            "set session_replication_role = replica; \
             insert into notifications (user_id, text) values ('alice', 'silent')",
        )
        .await;
    assert_eq!(source.next_event().await.data, "silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_bells_cost_nothing_but_looks() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let channel = "select 'tidings_' || 'notifications'::regclass::oid::text";
    let client = database.connect().await;
    let channel: String = client
        .query_one(channel, &[])
        .await
        .expect("a channel")
        .get(0);
    client
        .batch_execute(&format!(
            "select pg_notify('{channel}', 'bob ' || n) from generate_series(1, 10000) n"
        ))
        .await
        .expect("a flood");
    database
        .execute("select send_notification('alice', 'true')")
        .await;
    assert_eq!(source.next_event().await.data, "true");
}
