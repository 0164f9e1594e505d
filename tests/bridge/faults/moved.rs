//! The database's address moves to the promoted standby, while the old primary still runs and keeps
//! its existing sessions.

use private_postgres::Cluster;
use tokio::time::Instant;

use crate::support::{
    account::Account,
    bridge::Bridge,
    database::{Database, start_cluster},
    proxy::{Proxy, Target},
    row_id,
    standby::Standby,
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn once_the_bridge_has_moved_to_another_server_no_page_comes_from_the_old_one() {
    let mut account =
        Account::without_repeats("address moved to the promoted standby, old primary still there");
    let primary = start_cluster().await;
    let old = Database::create(&primary, "app").await;
    old.migrate().await;
    let standby = Standby::of(&primary).await;
    let new = Database::at(standby.cluster().url("app"));

    // Two proxies, so that the listener's session breaks and the pool's sessions don't.
    let (listening, reading) = (way_to(&primary).await, way_to(&primary).await);
    let direct = at(&listening).connection_string();
    let bridge = Bridge::start_with(&at(&reading), &["--direct-database-url", &direct]).await;
    let mut alice = bridge.connect_live("alice").await;
    old.execute("select send_notification('alice', 'before')")
        .await;
    let mut got = vec![row_id(&alice.next_event().await)];
    let id = alice.last_event_id().to_owned();
    old.until("select bool_and(sent) from notifications").await;
    standby.follows(&primary).await;

    standby.promote().await;
    new.execute("select send_notification('alice', 'only here')")
        .await;
    let begin = Instant::now();
    for way in [&listening, &reading] {
        way.lead_to(socket_of(standby.cluster()));
    }
    listening.reset();
    alice.rest().await;

    let mut alice = bridge.resume("alice", &id).await;
    assert_eq!(alice.next_event().await.data, r#"{"reason":"epoch"}"#);
    let backlog = until(&mut alice, "tidings.caught-up").await;
    account.recovered_after(begin.elapsed());
    got.extend(backlog.iter().map(row_id));
    let owed = new.ids("select id from notifications").await;
    account.client(owed, &got);
    new.until("select bool_and(sent) from notifications").await;
    account.close();
}

fn socket_of(cluster: &Cluster) -> Target {
    Target::Unix(cluster.folder().join("run/.s.PGSQL.5432"))
}

async fn way_to(cluster: &Cluster) -> Proxy {
    Proxy::to(socket_of(cluster)).await
}

fn at(way: &Proxy) -> Database {
    let (host, port) = (way.address().ip(), way.address().port());
    Database::at(format!("host={host} port={port} user=tidings dbname=app"))
}
