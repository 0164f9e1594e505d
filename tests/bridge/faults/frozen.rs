//! A frozen bridge doesn't read its notifications, and Postgres keeps what is unread in a queue
//! that the whole cluster shares.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use private_postgres::Cluster;

use crate::support::{
    account::Account,
    bridge::token,
    database::Database,
    event_source::EventSource,
    process::{serve, signal},
    row_id, until,
};

/// How long a frozen bridge may hold up the queue.
const PINNED_FOR: Duration = Duration::from_secs(15);

/// A cluster reached over TCP. All clusters use the default port, so each needs its own loopback
/// address.
async fn tcp_cluster() -> (Cluster, String) {
    let [a, b] = (std::process::id() as u16).to_be_bytes();
    let address = format!("127.{a}.{b}.7");
    let cluster = Cluster::temporary(&[("listen_addresses", &address)])
        .await
        .expect("a private PostgreSQL");
    let rules = data(&cluster).join("pg_hba.conf");
    let text = fs::read_to_string(&rules).expect("the rules of who may connect");
    fs::write(&rules, text.replace("reject", "trust")).expect("other rules");
    (cluster, address)
}

fn data(cluster: &Cluster) -> PathBuf {
    let folders = fs::read_dir(cluster.folder()).expect("a folder");
    let mut folders = folders.map(|entry| entry.expect("an entry").path());
    let data = folders.find(|path| path.join("pg_hba.conf").exists());
    data.expect("the data")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_bridge_does_not_pin_the_notification_queue() {
    let (cluster, address) = tcp_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    database
        .superuser()
        .execute("select pg_reload_conf()")
        .await;
    let (child, bridge) = serve(&database.at_host(&address), &[]).await;
    let bearer = format!("Bearer {}", token("alice"));
    let mut source = EventSource::open(bridge, "/stream", &[("Authorization", &bearer)]).await;
    until(&mut source, "tidings.caught-up").await;

    signal(&child, Signal::SIGSTOP);
    // More than the sockets' buffers hold, in payloads of nearly 8 kB.
    let flood = "select pg_notify('tidings_' || 'notifications'::regclass::oid::text, \
                 n || repeat('x', 7900)) from generate_series(1, 500) n";
    let writer = database.superuser().connect().await;
    let is_stuck = "select exists (select from pg_stat_activity \
                    where application_name = 'tidings' and wait_event = 'ClientWrite')";
    let flooding = async {
        loop {
            writer.execute(flood, &[]).await.expect("a flood");
            let row = writer.query_one(is_stuck, &[]).await.expect("a state");
            if row.get(0) {
                break;
            }
        }
    };
    tokio::time::timeout(crate::support::PATIENCE, flooding)
        .await
        .expect("the bridge's session is stuck");
    let stuck_at = Instant::now();
    writer.execute(flood, &[]).await.expect("a flood");
    database
        .until("select pg_notification_queue_usage() = 0")
        .await;
    let pinned = stuck_at.elapsed();
    assert!(pinned < PINNED_FOR, "{pinned:?}");

    database
        .execute("select send_notification('alice', 'while frozen')")
        .await;
    let mut account =
        Account::without_repeats("a bridge is frozen until Postgres drops its session, and thawed");
    signal(&child, Signal::SIGCONT);
    let thawed_at = Instant::now();
    let event = source.next_event().await;
    account.recovered_after(thawed_at.elapsed());
    account.client([1], &[row_id(&event)]);
    account.close();
    drop(child);
    cluster.stop().await.expect("an end");
}
