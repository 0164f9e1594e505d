//! The configuration of NATS that we ship.

use crate::support::{bridge::Bridge, database::Database, deployment::filled_in, nats::NatsServer};

#[tokio::test(flavor = "multi_thread")]
async fn its_permissions_are_enough_for_bridges_and_no_more() {
    let config = filled_in(
        "nats/nats.conf",
        &[
            ("password: $NATS_PASSWORD\n", "password: secret\n"),
            // Several tests run at once.
            ("http: 127.0.0.1:8222\n", ""),
        ],
    );
    let permissions = r#"permissions: { publish: "tidings.1.>", subscribe: "tidings.1.>" }"#;
    assert_eq!(config.matches("user: ").count(), 1);
    assert_eq!(config.matches(permissions).count(), 1);
    assert!(!config.contains("jetstream"));

    let database = Database::migrated().await;
    let nats = NatsServer::start_oldest(|_| config);
    let url = format!("nats://bridges:secret@{}", nats.address());
    let start = async |role: &str| {
        let bridge = Bridge::start_with(&database, &["--nats-url", &url]).await;
        let role = format!(r#"tidings_feed_role{{role="{role}"}} 1"#);
        bridge.until_metrics(|all| all.contains(&role), &role).await;
        bridge
    };
    let _feeder = start("feeding").await;
    let follower = start("following").await;
    let mut alice = follower.connect_live("alice").await;
    let send = "select send_notification('alice', 'Hello')";
    database.execute(send).await;
    assert_eq!(alice.next_event().await.data, "Hello");
}
