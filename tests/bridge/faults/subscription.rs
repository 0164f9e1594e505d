//! A table filled by logical replication: its rows carry transaction ids of another server, which
//! mean nothing here.

use private_postgres::Cluster;

use crate::support::{bridge::Bridge, database::Database, process::refusal, until};

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_a_subscribed_table_until_it_is_switched_over() {
    let cluster = Cluster::temporary(&[("wal_level", "logical")])
        .await
        .expect("a private PostgreSQL");
    let old = Database::create(&cluster, "old").await;
    let new = Database::copy(&cluster, "new", "old").await;
    old.migrate().await;
    new.migrate().await;
    // Within one cluster, the slot must be created beforehand.
    old.superuser()
        .execute("create publication tidings for table notifications")
        .await;
    old.superuser()
        .execute("select pg_create_logical_replication_slot('tidings', 'pgoutput')")
        .await;
    old.execute("select send_notification('alice', 'copied')")
        .await;
    let superuser = new.superuser();
    superuser
        .execute(&format!(
            "create subscription moving connection '{}' publication tidings \
         with (create_slot = false, slot_name = 'tidings')",
            old.superuser().connection_string()
        ))
        .await;
    new.until("select count(*) = 1 from notifications").await;
    new.until("select bool_and(srsubstate = 'r') from pg_subscription_rel")
        .await;
    old.execute("select send_notification('alice', 'applied')")
        .await;
    new.until("select count(*) = 2 from notifications").await;

    let said = refusal(&new, &[]).await;
    for expected in ["subscription", "moving", "drop subscription"] {
        assert!(said.contains(expected), "{said}");
    }

    superuser.execute("alter subscription moving disable").await;
    superuser
        .execute("alter subscription moving set (slot_name = none)")
        .await;
    superuser.execute("drop subscription moving").await;
    let bridge = Bridge::start(&new).await;
    let mut alice = bridge.connect("alice").await;
    let backlog = until(&mut alice, "tidings.caught-up").await;
    let texts: Vec<_> = backlog.iter().map(|event| event.data.as_str()).collect();
    assert_eq!(texts, ["copied", "applied"]);
    new.owner()
        .execute("select setval(pg_get_serial_sequence('notifications', 'id'), 100)")
        .await;
    new.execute("select send_notification('alice', 'live')")
        .await;
    assert_eq!(alice.next_event().await.data, "live");
}
