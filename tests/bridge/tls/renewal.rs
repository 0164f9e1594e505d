//! A renewed certificate is used without a restart.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::time::{interval, timeout};

use crate::support::tls::{
    authority::{Authority, Certified},
    http2::Http2,
    tunnel::{ORIGIN, connect},
};
use crate::support::{PATIENCE, database::Database, process::Served};

/// A handshake takes CPU time, and the files are checked every ten seconds.
const ASKS_AGAIN: Duration = Duration::from_millis(100);

/// Long before the next periodic check of the files.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Puts the files of `certified` where the bridge reads them, as Kubernetes does: both at once, by
/// replacing a symlink.
fn put(folder: &Path, name: &str, certified: &Certified) {
    let data = folder.join(name);
    fs::create_dir(&data).expect("a folder");
    fs::copy(&certified.certificate, data.join("tls.crt")).expect("a copy");
    fs::copy(&certified.key, data.join("tls.key")).expect("a copy");
    let link = folder.join("..data_tmp");
    symlink(&data, &link).expect("a link");
    fs::rename(link, folder.join("..data")).expect("a place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_to_new_clients_and_old_streams_go_on() {
    let database = Database::migrated().await;
    let (old, new) = (Authority::new(), Authority::new());
    let folder = old.file().with_file_name("mounted");
    fs::create_dir(&folder).expect("a folder");
    put(&folder, "first", &old.issue("bridge", &[ORIGIN]));
    let mounted = Certified {
        certificate: folder.join("..data/tls.crt"),
        key: folder.join("..data/tls.key"),
    };
    let [certificate, key] = mounted.settings();
    let mut bridge = Served::start(&database, &[&certificate, &key]).await;
    let connection = Http2::connect(bridge.address(), &old).await;
    let mut stream = connection.open("alice").await;
    stream.until("event: tidings.caught-up").await;

    // A pair of which only one half has been written changes nothing.
    let renewed = new.issue("bridge", &[ORIGIN]);
    fs::copy(&renewed.key, &mounted.key).expect("a copy");
    bridge.until_logged("WARN", "doesn't match").await;
    assert!(connect(bridge.address(), &old, "h2").await.is_ok());

    put(&folder, "second", &renewed);
    let asking = async {
        let mut pace = interval(ASKS_AGAIN);
        while connect(bridge.address(), &new, "h2").await.is_err() {
            pace.tick().await;
        }
    };
    timeout(PATIENCE, asking).await.expect("the renewed one");
    assert!(connect(bridge.address(), &old, "h2").await.is_err());
    database
        .execute("select send_notification('alice', 'through it all')")
        .await;
    stream.until("data: through it all\nid: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_has_it_read_at_once_and_what_can_not_be_used_changes_nothing() {
    let database = Database::migrated().await;
    let (old, new) = (Authority::new(), Authority::new());
    let folder = old.file().with_file_name("mounted");
    fs::create_dir(&folder).expect("a folder");
    put(&folder, "first", &old.issue("bridge", &[ORIGIN]));
    let mounted = Certified {
        certificate: folder.join("..data/tls.crt"),
        key: folder.join("..data/tls.key"),
    };
    let [certificate, key] = mounted.settings();
    let mut bridge = Served::start(&database, &[&certificate, &key]).await;
    let connection = Http2::connect(bridge.address(), &old).await;
    let mut stream = connection.open("alice").await;
    stream.until("event: tidings.caught-up").await;

    let renewed = new.issue("bridge", &[ORIGIN]);
    put(&folder, "second", &renewed);
    let asked = Instant::now();
    bridge.signal(Signal::SIGHUP);
    bridge
        .until_logged("INFO", "SIGHUP: reloaded the certificate from")
        .await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    assert!(connect(bridge.address(), &new, "h2").await.is_ok());

    fs::write(&mounted.certificate, "no certificate").expect("a file");
    bridge.signal(Signal::SIGHUP);
    bridge
        .until_logged("WARN", "SIGHUP: the certificate in")
        .await;
    assert!(connect(bridge.address(), &new, "h2").await.is_ok());
    database
        .execute("select send_notification('alice', 'through it all')")
        .await;
    stream.until("data: through it all\nid: ").await;
}
