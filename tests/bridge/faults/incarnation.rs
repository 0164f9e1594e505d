//! How the bridge detects a crash of Postgres: crash recovery empties an unlogged table, while a
//! clean restart or a reset of the server's statistics doesn't.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::Shutdown;

use crate::support::{
    bridge::Bridge,
    database::{Database, start_cluster},
};

/// Begins an incarnation if there is none, as bridges do, and returns it.
async fn incarnation(database: &Database) -> String {
    let client = database.bridge().connect().await;
    let begin = include_str!("../../../sql/begin_incarnation.sql").replace(":\"schema\"", "public");
    client.batch_execute(&begin).await.expect("an incarnation");
    let read = "select since::text from tidings_incarnation";
    client.query_one(read, &[]).await.expect(read).get(0)
}

fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a signal");
}

/// Resets every kind of statistics that this server version has.
const RESET_ALL: &str = "do $$
    declare
      kind text;
    begin
      foreach kind in array array[
        'bgwriter', 'archiver', 'wal', 'io', 'checkpointer', 'slru', 'recovery_prefetch'
      ] loop
        begin
          perform pg_stat_reset_shared(kind);
        exception
          when invalid_parameter_value then null;
        end;
      end loop;
      if current_setting('server_version_num')::int >= 170000 then
        execute 'select pg_stat_reset_shared()';
      end if;
      perform pg_stat_reset_slru(null);
      perform pg_stat_reset();
    end $$";

#[tokio::test(flavor = "multi_thread")]
async fn each_crash_recovery_shows_and_neither_a_restart_in_order_nor_a_reset_does() {
    let mut cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let first = incarnation(&database).await;
    cluster.restart(Shutdown::Fast).await.expect("a restart");
    assert_eq!(incarnation(&database).await, first, "a fast restart");
    database.superuser().execute(RESET_ALL).await;
    assert_eq!(incarnation(&database).await, first, "a reset of statistics");

    cluster
        .restart(Shutdown::Immediate)
        .await
        .expect("a restart");
    let second = incarnation(&database).await;
    assert_ne!(second, first, "an immediate restart");

    kill_hard(cluster.postmaster_pid().expect("a server"));
    cluster.restart(Shutdown::Fast).await.expect("a restart");
    let third = incarnation(&database).await;
    assert_ne!(third, second, "a killed server");

    // The server process survives and reinitializes: the sign of that is that every other session
    // ends.
    let superuser = database.superuser();
    let (client, connection) =
        tokio_postgres::connect(&superuser.connection_string(), tokio_postgres::NoTls)
            .await
            .expect("a witness");
    let witness = tokio::spawn(connection);
    let own = "select pg_backend_pid()";
    let victim = superuser.connect().await;
    let pid: i32 = victim.query_one(own, &[]).await.expect(own).get(0);
    kill_hard(pid);
    assert!(
        witness.await.expect("no panic").is_err(),
        "the witness ends"
    );
    drop(client);
    // Wait until the server accepts connections again.
    database.until_accepts().await;
    let fourth = incarnation(&database).await;
    assert_ne!(fourth, third, "a killed session");

    cluster.restart(Shutdown::Fast).await.expect("a restart");
    assert_eq!(incarnation(&database).await, fourth, "a fast restart");
}

/// All bridges agree on the incarnation that one of them began.
#[tokio::test(flavor = "multi_thread")]
async fn bridges_that_come_back_from_a_crash_at_once_begin_one_incarnation() {
    let mut cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridges = [
        Bridge::start(&database).await,
        Bridge::start(&database).await,
        Bridge::start(&database).await,
    ];
    cluster
        .restart(Shutdown::Immediate)
        .await
        .expect("a restart");
    let mut tabs = Vec::new();
    for bridge in &bridges {
        bridge.until_ready_is(200).await;
        tabs.push(bridge.connect_live("alice").await);
    }
    database
        .execute("select send_notification('alice', 'after')")
        .await;
    for tab in &mut tabs {
        assert_eq!(tab.next_event().await.data, "after");
    }
    database
        .until("select bool_and(sent) and count(*) = 1 from notifications")
        .await;
    assert_eq!(
        database
            .ids("select count(*) from tidings_incarnation")
            .await,
        [1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_statistics_ends_no_stream_and_loses_no_mark() {
    let cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
    let bridge = Bridge::start(&database).await;
    // The stream of a user who has logged out and in again that day.
    let first = bridge.connect_live("alice").await;
    database.execute("select disconnect_user('alice')").await;
    bridge.until_connections(0).await;
    drop(first);
    let mut tab = bridge.connect_live("alice").await;
    for n in 0..20 {
        // Statistics are reset while rows are being marked.
        database
            .execute(&format!("select send_notification('alice', 'row {n}')"))
            .await;
        database.superuser().execute(RESET_ALL).await;
        assert_eq!(tab.next_event().await.data, format!("row {n}"));
    }
    database
        .until("select bool_and(sent) and count(*) = 20 from notifications")
        .await;
    // No stream has ended so far, and the next logout is still read.
    assert_eq!(bridge.connections(), 1);
    let metrics = bridge.admin("/metrics").await.text().await;
    for line in [
        "tidings_listener_reconnects_total 0",
        "tidings_lost_marks_total 0",
        "tidings_connections_opened_total 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    database.execute("select disconnect_user('alice')").await;
    bridge.until_connections(0).await;
}
