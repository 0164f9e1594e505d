//! What the bridge recognises a crash of Postgres by: `stats_reset` of
//! `pg_stat_bgwriter` is another one after each crash recovery, and the same
//! after a restart in order.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tidings::cluster::{Cluster, Shutdown};

use crate::support::database::{Database, start_cluster};

const INCARNATION: &str = "select stats_reset::text from pg_stat_bgwriter";

async fn incarnation(cluster: &Cluster) -> String {
    let client = Database::at(cluster.url("postgres"))
        .superuser()
        .connect()
        .await;
    let row = client.query_one(INCARNATION, &[]).await;
    row.expect(INCARNATION).get(0)
}

fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_crash_recovery_shows_and_a_restart_in_order_does_not() {
    let mut cluster = start_cluster().await;
    let first = incarnation(&cluster).await;
    cluster.restart(Shutdown::Fast).await.expect("a restart");
    assert_eq!(incarnation(&cluster).await, first, "a fast restart");

    cluster
        .restart(Shutdown::Immediate)
        .await
        .expect("a restart");
    let second = incarnation(&cluster).await;
    assert_ne!(second, first, "an immediate restart");

    kill_hard(cluster.postmaster_pid().expect("a server"));
    cluster.restart(Shutdown::Fast).await.expect("a restart");
    let third = incarnation(&cluster).await;
    assert_ne!(third, second, "a killed server");

    // The server itself goes on and starts anew at the same time: it says so
    // by ending every other session.
    let database = Database::at(cluster.url("postgres")).superuser();
    let (client, connection) =
        tokio_postgres::connect(&database.connection_string(), tokio_postgres::NoTls)
            .await
            .expect("a witness");
    let witness = tokio::spawn(connection);
    let own = "select pg_backend_pid()";
    let victim = database.connect().await;
    let pid: i32 = victim.query_one(own, &[]).await.expect(own).get(0);
    kill_hard(pid);
    assert!(
        witness.await.expect("no panic").is_err(),
        "the witness ends"
    );
    drop(client);
    // Accepts connections again.
    database.until_accepts().await;
    let fourth = incarnation(&cluster).await;
    assert_ne!(fourth, third, "a killed session");

    cluster.restart(Shutdown::Fast).await.expect("a restart");
    assert_eq!(incarnation(&cluster).await, fourth, "a fast restart");
}
