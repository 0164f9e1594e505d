//! A server with a nearly full notification queue: INSERTs succeed without sending NOTIFY.

use std::time::{Duration, Instant};

use private_postgres::Cluster;

use super::{bell::Bell, witness::Witness};
use crate::support::{bridge::Bridge, database::Database, process::Served};

/// The safety poll finds rows once per second; the rest is a margin for a busy machine.
const FOUND_WITHIN: Duration = Duration::from_secs(5);

/// Makes the queue appear this full to all sessions in this database.
async fn pretend(database: &Database, usage: f64) {
    let real = "do $$ begin \
        if to_regproc('pg_catalog.tests_queue_usage') is null then \
          alter function pg_catalog.pg_notification_queue_usage() rename to tests_queue_usage; \
        end if; end $$";
    let pretended = format!(
        "create or replace function pg_catalog.pg_notification_queue_usage() \
         returns double precision language sql volatile as 'select {usage}::double precision'"
    );
    for statement in [real, &pretended] {
        database.superuser().execute(statement).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_rings_until_the_queue_is_half_full_and_again_afterwards() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect_live("alice").await;
    let bell = Bell::of(&database).await;
    let witness = Witness::of(&database, "public").await;
    for (usage, rings) in [(0.5, 1), (0.51, 0), (1.0, 0), (0.1, 1)] {
        pretend(&database, usage).await;
        bell.until_all_sleep().await;
        witness.received().await;
        let inserted = Instant::now();
        database
            .execute(&format!("select send_notification('alice', '{usage}')"))
            .await;
        assert_eq!(witness.received().await, rings, "{usage}");
        assert_eq!(tab.next_event().await.data, usage.to_string());
        let found = inserted.elapsed();
        assert!(found < FOUND_WITHIN, "{usage}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_fills_is_warned_of_and_measured() {
    let database = Database::migrated().await;
    pretend(&database, 0.25).await;
    let mut bridge = Served::start(&database, &[]).await;
    bridge
        .until_metric("tidings_notify_queue_usage", |usage| usage == 0.25)
        .await;
    pretend(&database, 0.75).await;
    bridge
        .until_logged("WARN", "notification queue is 75 % full")
        .await;
    bridge
        .until_metric("tidings_notify_queue_usage", |usage| usage == 0.75)
        .await;
    // Rows are delivered all the same.
    assert_eq!(bridge.ready().await.status(), 200);
    pretend(&database, 0.0).await;
    bridge
        .until_logged("INFO", "INSERTs send NOTIFY again")
        .await;
}

/// An INSERT succeeds even if neither the writer nor the owner of the trigger function may read the
/// queue usage.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_rings_where_nobody_may_see_how_full_the_queue_is() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute(
            "revoke execute on function pg_notification_queue_usage() \
             from public, tidings_owner, tidings_bridge, tidings_monitor",
        )
        .await;
    let bell = Bell::of(&database).await;
    bell.rung().await;
    let witness = Witness::of(&database, "public").await;
    database
        .execute("insert into notifications (user_id, text) values ('alice', 'x')")
        .await;
    assert_eq!(witness.received().await, 1);
    // The bridge doesn't need that privilege either.
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect("alice").await;
    assert_eq!(tab.next_event().await.data, "x");
    bridge.until_ready_is(200).await;
}

/// Any role that can connect can fill the queue. Before PostgreSQL 17 that takes 8 GB.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_fails_no_insert_and_stops_no_bridge() {
    let small = [("max_connections", "100"), ("max_notify_queue_pages", "64")];
    let Ok(cluster) = Cluster::temporary(&small).await else {
        let database = Database::migrated().await;
        assert!(database.server_version().await < 17_00_00);
        return;
    };
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    let mut tab = bridge.connect_live("alice").await;
    let stranger = database.superuser().connect().await;
    stranger
        .batch_execute("create role stranger login")
        .await
        .expect("a role");
    let deaf = database.as_role("stranger").connect().await;
    for statement in ["listen elsewhere", "begin", "select 1"] {
        deaf.batch_execute(statement).await.expect(statement);
    }
    let filling = database.as_role("stranger").connect().await;
    let fill = "select pg_notify('elsewhere', repeat('x', 7900) || random())";
    while filling.batch_execute(fill).await.is_ok() {}
    let usage = "select pg_notification_queue_usage() > 0.9";
    assert!(
        stranger
            .query_one(usage, &[])
            .await
            .expect(usage)
            .get::<_, bool>(0)
    );

    let bell = Bell::of(&database).await;
    bell.until_all_sleep().await;
    for n in 0..3 {
        let inserted = Instant::now();
        database
            .execute(&format!("select send_notification('alice', 'row {n}')"))
            .await;
        assert_eq!(tab.next_event().await.data, format!("row {n}"));
        assert!(inserted.elapsed() < FOUND_WITHIN);
    }
    bridge.until_ready_is(200).await;
    let metrics = bridge.admin("/metrics").await.text().await;
    assert!(
        metrics.contains("tidings_listener_reconnects_total 0"),
        "{metrics}"
    );
    // Another bridge starts.
    let other = Bridge::start(&database).await;
    other.until_ready_is(200).await;
    deaf.batch_execute("commit").await.expect("an end");
}
