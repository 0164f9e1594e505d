//! The folder of a cluster: its owner, its lock, and its contents.

use std::{
    env,
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt, chown, fchown},
        net::SocketAddr,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::{self, Signal};
use tracing::{debug, warn};

use super::{
    ClusterError, PORT, PostgresBinaries, Result, account::Account, cannot, poll, postmaster,
};

const LOCK: &str = "lock";
const RUNNING: &str = "running";
const SOCKETS: &str = "run";
const LOG: &str = "postgres.log";

/// Prefixes for the folders of temporary clusters: once their lock is held, and before.
const TEMPORARY: &str = "tidings-test-";
const UNLOCKED: &str = "tidings-making-";

/// The locks of a killed process are released slightly after it appears to be gone.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// How long a leftover server may take to stop before it receives the next, stronger
/// signal. It was normally signalled already when its process ended.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);

/// A cluster's folder, with its lock held.
#[derive(Debug)]
pub(super) struct Home {
    /// With all links resolved.
    pub(super) folder: PathBuf,
    /// The socket's folder; its path is known to be usable for a socket.
    pub(super) sockets: String,
    /// The user that must run the server, if not the current one.
    pub(super) account: Option<Account>,
    _lock: File,
}

impl Home {
    /// Prepares `folder`, which need not exist, for a cluster and locks it.
    pub(super) async fn claim(folder: &Path, binaries: &PostgresBinaries) -> Result<Self> {
        fs::create_dir_all(folder).map_err(cannot("create", folder))?;
        let folder = fs::canonicalize(folder).map_err(cannot("find", folder))?;
        let sockets = sockets_folder(&folder)?;
        let account = Account::for_folder(&folder)?;
        if let Some(account) = &account {
            account.must_execute(binaries)?;
            account.must_reach(&folder)?;
        }
        refuse_foreign(&folder)?;
        make_private(&folder, account.as_ref())?;

        let path = folder.join(LOCK);
        let lock = open(&path, account.as_ref())?;
        poll(LOCK_LIMIT, || try_lock(&lock, &path))
            .await?
            .ok_or_else(|| ClusterError::InUse(folder.clone()))?;
        Ok(Self {
            folder,
            sockets,
            account,
            _lock: lock,
        })
    }

    /// Creates a new folder in the temporary directory, and removes those that earlier
    /// clusters left there.
    pub(super) async fn temporary(binaries: &PostgresBinaries) -> Result<Self> {
        let parent = env::temp_dir();
        let name = format!("{:016x}", rand::random::<u64>());
        let mut home = Self::claim(&parent.join(format!("{UNLOCKED}{name}")), binaries).await?;
        let folder = home.folder.with_file_name(format!("{TEMPORARY}{name}"));
        fs::rename(&home.folder, &folder).map_err(cannot("rename", &home.folder))?;
        home.sockets = sockets_folder(&folder)?;
        home.folder = folder;
        sweep(&parent);
        Ok(home)
    }

    /// Waits until no process of an earlier server or `initdb` is left, whether of this
    /// process or of one that was killed. After [`ORPHAN_LIMIT`], signals the server to
    /// stop. Returns the file that the next server must hold.
    ///
    /// The signal is needed if the supervisor was killed too, as by `pkill -f tidings`,
    /// and some session keeps the server running.
    pub(super) async fn claim_running(&self, data: &Path) -> Result<File> {
        let path = self.folder.join(RUNNING);
        let running = open(&path, self.account.as_ref())?;
        for signal in [None, Some(Signal::SIGINT), Some(Signal::SIGQUIT)] {
            if let (Some(signal), Some(pid)) = (signal, postmaster::find(data)) {
                warn!(%pid, %signal, "a PostgreSQL server is still running; sending it {signal}");
                // This fails if the server has just ended; then the signal isn't needed.
                let _ = signal::kill(pid, signal);
            }
            if poll(ORPHAN_LIMIT, || try_lock(&running, &path))
                .await?
                .is_some()
            {
                return Ok(running);
            }
        }
        Err(ClusterError::StillRunning(data.to_owned()))
    }

    /// Creates an empty folder for the socket. Old contents are useless or harmful: an
    /// old socket is dead, and its lock file may name a process id that another process
    /// has now, which the server would take for its rival.
    pub(super) fn renew_sockets(&self) -> Result<()> {
        let sockets = Path::new(&self.sockets);
        remove(sockets)?;
        fs::create_dir(sockets).map_err(cannot("create", sockets))?;
        make_private(sockets, self.account.as_ref())
    }

    /// The log file: emptied when a cluster starts, then appended to.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    pub(super) fn open_log(&self) -> Result<File> {
        open(&self.log(), self.account.as_ref())
    }

    pub(super) fn empty_log(&self) -> Result<()> {
        let log = self.open_log()?;
        log.set_len(0).map_err(cannot("empty", &self.log()))
    }
}

/// The socket's folder inside `folder`, if its path is usable for a socket.
fn sockets_folder(folder: &Path) -> Result<String> {
    let sockets = folder.join(SOCKETS);
    let socket = sockets.join(format!(".s.PGSQL.{PORT}"));
    let fits = SocketAddr::from_pathname(socket).is_ok();
    sockets
        .into_os_string()
        .into_string()
        .ok()
        .filter(|sockets| fits && !sockets.contains(','))
        .ok_or_else(|| ClusterError::SocketPath(folder.to_owned()))
}

/// Prevents taking over, or removing, a folder that is used for something else.
fn refuse_foreign(folder: &Path) -> Result<()> {
    let mut contents = fs::read_dir(folder).map_err(cannot("read", folder))?;
    if contents.next().is_none() || folder.join(LOCK).is_file() {
        return Ok(());
    }
    Err(ClusterError::NotOurs(folder.to_owned()))
}

/// Allows only the user of `folder` to enter it.
fn make_private(folder: &Path, account: Option<&Account>) -> Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))
        .map_err(cannot("make private", folder))?;
    match account {
        Some(account) => chown(folder, Some(account.uid), Some(account.gid))
            .map_err(cannot("change the owner of", folder)),
        None => Ok(()),
    }
}

/// Opens a file for appending. The folder's user owns it, because that user may run this
/// later without being root.
fn open(path: &Path, account: Option<&Account>) -> Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(cannot("open", path))?;
    if let Some(account) = account {
        fchown(&file, Some(account.uid), Some(account.gid))
            .map_err(cannot("change the owner of", path))?;
    }
    Ok(file)
}

fn try_lock(file: &File, path: &Path) -> Result<Option<()>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(())),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(cannot("lock", path)(error)),
    }
}

/// Removes a folder with its contents, if it exists.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(cannot("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Removes what temporary clusters left in `parent`: everything, if their supervisors
/// were killed too; or an empty folder, if the server's user may not remove it from its
/// parent. What can't be removed now is left for the next run.
///
/// A folder gets its final name only once its lock is held, and a released lock is never
/// acquired again.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        let folder = entry.path();
        let left = File::open(folder.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if !left {
            // This only removes empty folders.
            let _ = fs::remove_dir(&folder);
        } else if let Err(error) = remove(&folder) {
            debug!(%error, "could not remove a temporary cluster");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_folders_unfit_for_a_socket() {
        assert!(sockets_folder(Path::new("/a b's")).is_ok());
        assert!(sockets_folder(Path::new("/a,b")).is_err());
        let longest = 107 - "/run/.s.PGSQL.5432".len();
        let folder = |length: usize| PathBuf::from(format!("/{}", "x".repeat(length - 1)));
        if cfg!(target_os = "linux") {
            assert!(sockets_folder(&folder(longest)).is_ok());
            assert!(sockets_folder(&folder(longest + 1)).is_err());
        }
    }
}
