//! The database stops and starts again, and streams stay open.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use private_postgres::Shutdown;
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    bridge::Bridge,
    database::{Database, start_cluster},
    dev::DataFolder,
    expect_gap, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn streams_stay_open_over_a_restart_of_postgres_and_get_what_comes_after_it() {
    let mut cluster = start_cluster().await;
    let database = Database::migrated_in(&cluster).await;
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
    // A new connection finds the pool working again. If the crash lost a mark, its row is only sent
    // again, to a new connection.
    let mut second = bridge.connect("alice").await;
    until(&mut second, "tidings.caught-up").await;
    database
        .until("select bool_and(sent) from notifications")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_session_is_ended_comes_back_and_catches_up() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    for round in 0..5 {
        // In one transaction: the row becomes visible as the listener loses its session.
        database
            .superuser()
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
    let database = Database::migrated_in(&cluster).await;
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
    bridge.until_ready_is(503).await;
    assert_eq!(bridge.admin("/health/live").await.status(), 200);
    // A stream's first bytes don't wait for the database.
    let mut source = bridge.connect("alice").await;
    assert!(source.next_item().await.is_ok());
    cluster.restart(Shutdown::Fast).await.expect("a restart");
    assert_eq!(source.next_event().await.data, "hello");
    bridge.until_ready_is(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_ring_no_bell_are_found_all_the_same() {
    let database = Database::migrated().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect_live("alice").await;
    database
        .superuser()
        .execute(
            "set session_replication_role = replica; \
             insert into notifications (user_id, text) values ('alice', 'silent')",
        )
        .await;
    assert_eq!(source.next_event().await.data, "silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_bells_cost_only_polls() {
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

/// A socket that leads to one server or another, like an address that moves to the promoted
/// standby.
struct MovingSocket {
    folder: DataFolder,
    leads_to: Arc<Mutex<PathBuf>>,
    _accepting: AbortOnDropHandle<()>,
}

impl MovingSocket {
    fn open(leads_to: &Path) -> Self {
        // Not in a cluster's folder, which is removed with its cluster.
        let folder = DataFolder::new();
        std::fs::create_dir_all(folder.path()).expect("a folder");
        let socket = folder.path().join(".s.PGSQL.5432");
        let listener = UnixListener::bind(socket).expect("a socket");
        let leads_to = Arc::new(Mutex::new(leads_to.to_owned()));
        let target = Arc::clone(&leads_to);
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let folder = target.lock().expect("a folder").clone();
                tokio::spawn(async move {
                    let server = UnixStream::connect(folder.join(".s.PGSQL.5432")).await;
                    let _ = copy_bidirectional(&mut client, &mut server.expect("a server")).await;
                });
            }
        });
        Self {
            folder,
            leads_to,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_ends_the_streams_and_their_ids_begin_anew_with_the_backlog() {
    let (old, new) = (start_cluster().await, start_cluster().await);
    // Both databases have the same name.
    let old_database = Database::create(&old, "app").await;
    old_database.migrate().await;
    let new_database = Database::create(&new, "app").await;
    new_database.migrate().await;
    let socket = MovingSocket::open(&old.folder().join("run"));
    let bridge = Bridge::start(&old_database.through(socket.folder.path())).await;
    let mut source = bridge.connect_live("alice").await;
    old_database
        .execute("select send_notification('alice', 'old')")
        .await;
    assert_eq!(source.next_event().await.data, "old");
    let id = source.last_event_id().to_owned();

    // The new server has an unsent row.
    new_database
        .execute("select send_notification('alice', 'new')")
        .await;
    *socket.leads_to.lock().expect("a folder") = new.folder().join("run");
    old.stop().await.expect("an end");

    // The old positions mean nothing there.
    source.rest().await;
    let mut source = bridge.resume("alice", &id).await;
    expect_gap(&mut source, "epoch").await;
    assert_eq!(source.next_event().await.data, "new");
    until(&mut source, "tidings.caught-up").await;
    new_database
        .execute("select send_notification('alice', 'live')")
        .await;
    assert_eq!(source.next_event().await.data, "live");
    new.stop().await.expect("an end");
}
