//! `/health/ready` proves the path from the table to the bridge: it turns red soon after the path
//! breaks, gives the reason, and turns green again on its own.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{bridge::Bridge, database::Database, proxy::Network, until};

/// How soon the bridge must report that it receives nothing.
const DEAF_WITHIN: Duration = Duration::from_secs(15);

/// Breaks something, and returns the reason that readiness then gives.
async fn reason_after(bridge: &Bridge, database: &Database, breaking: &str) -> String {
    let broken_at = Instant::now();
    database.owner().execute(breaking).await;
    let body = bridge.until_ready_is(503).await.text().await;
    let known_after = broken_at.elapsed();
    assert!(known_after < DEAF_WITHIN, "{breaking}: {known_after:?}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["readiness"], "listener-failing");
    assert_eq!(body["status"], "deaf", "the former name");
    assert!(body["last_poll_ms"].is_u64(), "{body}");
    assert_eq!(bridge.admin("/health/live").await.status(), 200);
    body["reason"].as_str().expect("a reason").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_trigger_is_reported_and_rows_are_still_delivered() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    bridge.until_ready_is(200).await;
    let disable = "alter table notifications disable trigger tidings_ring_doorbell";
    let reason = reason_after(&bridge, &database, disable).await;
    assert!(reason.contains("is disabled"), "{reason}");
    assert!(reason.contains("enable trigger"), "{reason}");
    database
        .execute("select send_notification('alice', 'unrung')")
        .await;
    assert_eq!(source.next_event().await.data, "unrung");
    database
        .owner()
        .execute("alter table notifications enable trigger tidings_ring_doorbell")
        .await;
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_trigger_is_reported_with_the_statement_that_restores_it() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    bridge.until_ready_is(200).await;
    let drop = "drop trigger tidings_ring_doorbell on notifications";
    let reason = reason_after(&bridge, &database, drop).await;
    let (_, rest) = reason.split_once('`').expect("a statement");
    let statement = rest.strip_suffix('`').expect("its end");
    database.owner().execute(statement).await;
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_privilege_on_the_bell_is_reported_with_its_fix() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    bridge.until_ready_is(200).await;
    let revoke = "revoke update on tidings_bell from tidings_bridge; \
                  select pg_terminate_backend(pid) from pg_stat_activity \
                  where application_name = 'tidings' and datname = current_database()";
    database.superuser().execute(revoke).await;
    // At first the bridge only knows that the connection is gone.
    let fix = loop {
        let body = bridge.until_ready_is(503).await.text().await;
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let reason = body["reason"].as_str().expect("a reason");
        if let Some(fix) = reason.split('`').nth(1) {
            break fix.to_owned();
        }
    };
    assert!(fix.starts_with("grant select, update on sequence"), "{fix}");
    database.superuser().execute(&fix).await;
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_page_reads_are_reported_while_the_listener_works() {
    let database = Database::migrated().await;
    let (network, reached) = database.over_network().await;
    let direct = ["--direct-database-url", &database.connection_string()];
    let bridge = Bridge::start_with(&reached, &direct).await;
    network.set(Network::Refuse);
    network.reset();
    let mut waiting = bridge.connect("alice").await;
    let body = bridge.until_ready_is(503).await.text().await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["readiness"], "reads-failing");
    assert_eq!(body["status"], "blind", "the former name");
    let reason = body["reason"].as_str().expect("a reason");
    assert!(reason.contains("pages can't be read"), "{reason}");
    network.set(Network::Pass);
    until(&mut waiting, "tidings.caught-up").await;
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_is_reported_and_served_again_once_it_is_back() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let rename = "alter table notifications rename to elsewhere";
    let reason = reason_after(&bridge, &database, rename).await;
    assert!(reason.contains("no table notifications"), "{reason}");
    database
        .owner()
        .execute("alter table elsewhere rename to notifications")
        .await;
    database
        .execute("select send_notification('alice', 'back')")
        .await;
    assert_eq!(source.next_event().await.data, "back");
    bridge.until_ready_is(200).await;
}

/// The bridge may not change the rows; the owner may.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_cluster_are_reported_until_the_owner_restamps_them() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    let restore = "alter table notifications disable trigger tidings_restamp; \
                   insert into notifications (user_id, text, xid) \
                   values ('alice', 'restored', '900000000')";
    let reason = reason_after(&bridge, &database, restore).await;
    assert!(reason.contains("run `tidings migrate`"), "{reason}");
    database
        .execute("select send_notification('alice', 'meanwhile')")
        .await;
    assert_eq!(source.next_event().await.data, "meanwhile");
    database.migrate().await;
    assert_eq!(source.next_event().await.data, "restored");
    bridge.until_ready_is(200).await;
}
