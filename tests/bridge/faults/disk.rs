//! Postgres runs out of disk space.

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

/// A small in-memory file system that a test can fill.
struct SmallDisk {
    folder: DataFolder,
}

impl SmallDisk {
    /// Returns `None` if this process may not mount because it isn't root.
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

    /// Uses up all remaining space. Removing the returned file frees it.
    fn fill(&self) -> PathBuf {
        let path = self.folder.path().join("ballast");
        let mut file = File::create(&path).expect("a file");
        // The last bytes are written one by one, so that not even one page of Postgres fits.
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
        // Lazy unmount, since the server may still be shutting down.
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
        // These versions keep statistics in files. Without disk space, each read of statistics,
        // which every page does, waits ten seconds. Debian keeps the files in memory.
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
    // The table's pages have no room for a second version of a row, and the text is incompressible.
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
