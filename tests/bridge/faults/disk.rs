//! Postgres has no room left on its disk.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::Instant,
};

use private_postgres::{Cluster, PostgresBinaries};

use crate::support::{
    account::Account, database::Database, dev::DataFolder, process::Served, rows, until,
};

/// Enough for a cluster and its log.
const DISK: &str = "size=200m";

/// A small file system in memory, which a test may fill.
struct SmallDisk {
    folder: DataFolder,
}

impl SmallDisk {
    /// None where this process may not mount, being no root.
    fn mount() -> Option<Self> {
        let folder = DataFolder::new();
        fs::create_dir_all(folder.path()).expect("a folder");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "tmpfs"])
            .arg(folder.path())
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then_some(Self { folder })
    }

    /// Takes all the room that is left. Whoever removes the file gives it back.
    fn fill(&self) -> PathBuf {
        let path = self.folder.path().join("ballast");
        let mut file = File::create(&path).expect("a file");
        // The last bytes one by one: a page of Postgres must find no room.
        for size in [1 << 20, 4 << 10, 1] {
            let bytes = vec![1; size];
            let error = loop {
                if let Err(error) = file.write_all(&bytes) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still be about to end.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.folder.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_no_row_from_its_client_and_marks_follow_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("not tried: only root may mount a small disk");
        return;
    };
    let mut account = Account::without_repeats("the disk of Postgres is full");
    let binaries = PostgresBinaries::find().expect("a server");
    let folder = disk.folder.path().join("cluster");
    let cluster = Cluster::start(&binaries, &folder, &[]).await;
    let cluster = cluster.expect("a cluster");
    let database = Database::migrated_in(&cluster).await;
    let elsewhere = DataFolder::new();
    if database.server_version().await < 15_00_00 {
        // There the statistics are files, without room for which each look at them,
        // as a page takes one, waits for ten seconds. Debian puts them into memory.
        fs::create_dir_all(elsewhere.path()).expect("a folder");
        let everybody = Permissions::from_mode(0o777);
        fs::set_permissions(elsewhere.path(), everybody).expect("a folder for the server");
        let superuser = database.superuser().connect().await;
        let set = format!(
            "alter system set stats_temp_directory = '{}'",
            elsewhere.path().display()
        );
        superuser.batch_execute(&set).await.expect(&set);
        let reload = "select pg_reload_conf()";
        superuser.batch_execute(reload).await.expect(reload);
    }
    let mut bridge = Served::start(&database, &[]).await;
    // Pages without room for the second version of a row, and text that can't
    // be compressed.
    database
        .owner()
        .execute(
            "alter table notifications set (fillfactor = 100); \
             insert into notifications (user_id, text) \
             select 'alice', (select string_agg(md5(m::text), '') from generate_series(1, 55) m) \
             from generate_series(1, 100)",
        )
        .await;
    let owed = database.ids("select id from notifications").await;

    let ballast = disk.fill();
    let mut source = bridge.connect("alice", None).await;
    account.client(owed, &rows(&mut source, 100).await);
    bridge.until_logged("WARN", "No space left on device").await;

    fs::remove_file(ballast).expect("room");
    let room = Instant::now();
    let all_sent = "select bool_and(sent) from notifications";
    database.until(all_sent).await;
    account.recovered_after(room.elapsed());
    until(&mut source, "tidings.caught-up").await;
    database
        .execute("select send_notification('alice', 'live')")
        .await;
    assert_eq!(source.next_event().await.data, "live");
    cluster.stop().await.expect("an end");
    account.close();
}
