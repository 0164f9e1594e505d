//! A private PostgreSQL cluster: a server of our own in one folder, which no other user
//! can reach.
//!
//! `tidings dev` keeps its database in one ([`Cluster::start`]); the tests use temporary
//! ones ([`Cluster::temporary`]).
//!
//! The server listens on a Unix socket in a folder that only its owner may enter, and on
//! no network. It never outlives this process, however this process ends: a small shell
//! script supervises it and stops it when the pipe to this process closes.
//!
//! The cluster's folder contains:
//!
//! | name | what |
//! | --- | --- |
//! | `lock` | locked by the process that uses the folder |
//! | `running` | locked by every process of a server, until the last has ended |
//! | `postgres-15` | the data, by major version: another major version starts its own |
//! | `run` | the socket's folder |
//! | `postgres.log` | output of `initdb` and `postgres` since the last start |

mod account;
mod binaries;
mod home;
mod log;
mod postmaster;
mod server;
mod supervisor;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use tracing::debug;

pub use self::{
    binaries::{PostgresBinaries, Unusable},
    log::LogTail,
};
use self::{home::Home, supervisor::Supervised};

/// The superuser, and the only role in a new cluster.
const SUPERUSER: &str = "tidings";
/// Only part of the socket's name, since the server listens on no network. It is set
/// explicitly because `PGPORT` would change the default.
const PORT: u16 = 5432;

/// Polling interval for state that can't notify us of changes.
const TICK: Duration = Duration::from_millis(5);

/// Why there is no cluster. Each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no server on `PATH` or in any usual place.
    #[error(
        "no PostgreSQL server was found: install one (`apt-get install postgresql`, \
         `brew install postgresql`) or set PG_BIN_DIR to the folder that holds `postgres` \
         and `initdb`"
    )]
    NoBinaries,
    /// `PG_BIN_DIR` is set but unusable; no other server is searched for.
    #[error(
        "PG_BIN_DIR is {}, but {reason}: set it to the folder that holds `postgres` and \
         `initdb`, or unset it",
        folder.display()
    )]
    BadBinDir { folder: PathBuf, reason: Unusable },
    /// Another process uses this folder.
    #[error(
        "another `tidings dev` uses {}: stop it, or set TIDINGS_DEV_DATA to another folder",
        .0.display()
    )]
    InUse(PathBuf),
    /// This folder has contents that don't belong to a cluster of ours. It is left alone,
    /// because a cluster changes its folder's owner and permissions.
    #[error(
        "{} is not empty and is not a Tidings cluster: set TIDINGS_DEV_DATA to an empty folder or \
         one that doesn't exist yet",
        .0.display()
    )]
    NotOurs(PathBuf),
    /// We are root, and there is no other user to run PostgreSQL as.
    #[error(
        "PostgreSQL doesn't run as root, and there is no user `postgres` or `nobody` to run it as: \
         run this as an ordinary user, or create one of these"
    )]
    NoAccount,
    /// The user that must run the server can't reach its data.
    #[error(
        "PostgreSQL doesn't run as root, so it runs as `{account}`, which may not enter {}: set \
         TIDINGS_DEV_DATA to a folder elsewhere (for a temporary cluster: TMPDIR)",
        folder.display()
    )]
    FolderBarred {
        account: String,
        /// The inaccessible folder on the path to the data.
        folder: PathBuf,
    },
    /// The user that must run the server can't execute it.
    #[error(
        "PostgreSQL doesn't run as root, so it runs as `{account}`, which may not enter or execute \
         {}: set PG_BIN_DIR to the folder of a server that this user may execute",
        path.display()
    )]
    BinariesBarred {
        account: String,
        /// The inaccessible program, or folder on the path to it.
        path: PathBuf,
    },
    /// In this folder, the path of the socket would be too long for a Unix socket, or it
    /// can't be written in a connection string, where a comma separates hosts.
    #[error(
        "{} can't be used for the server's Unix socket: the socket's path must be UTF-8 without \
         commas, and at most {} bytes long. Set TIDINGS_DEV_DATA to another or shorter path (for a \
         temporary cluster: TMPDIR)",
        .0.display(),
        if cfg!(target_os = "macos") { 103 } else { 107 }
    )]
    SocketPath(PathBuf),
    /// `initdb`, `pg_basebackup` or `postgres` ended unexpectedly.
    #[error("{program} ended ({status}); {log}")]
    Ended {
        program: &'static str,
        status: ExitStatus,
        log: LogTail,
    },
    /// `initdb`, `pg_basebackup` or `postgres` took too long.
    #[error("{program} wasn't ready within {} seconds; {log}", limit.as_secs())]
    NotReady {
        program: &'static str,
        limit: Duration,
        log: LogTail,
    },
    /// A server on this data didn't stop when it was signalled.
    #[error(
        "the PostgreSQL server in {} doesn't stop: end the process whose PID is on the first line \
         of its postmaster.pid, and try again",
        .0.display()
    )]
    StillRunning(PathBuf),
    /// A system call failed.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// Converts an I/O error, adding what was tried.
fn cannot<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ClusterError + 'a {
    move |source| ClusterError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Polls `ask` every few milliseconds until it returns something; `None` if that takes
/// longer than `limit`.
async fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        match ask()? {
            None if start.elapsed() < limit => tokio::time::sleep(TICK).await,
            answer => return Ok(answer),
        }
    }
}

/// The longest time that stopping a server can take.
pub const STOP_LIMIT: Duration = Duration::from_secs(35);

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends the sessions and writes everything to disk.
    Fast,
    /// Stops as in a crash: the next start recovers from the log.
    Immediate,
}

/// What happens to the data when the cluster stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Kept,
    Thrown,
}

impl Durability {
    /// Temporary data need not survive a crash of the machine. Commits still wait for
    /// their place in the log, as in production.
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kept => &[],
            Self::Thrown => &[("fsync", "off"), ("full_page_writes", "off")],
        }
    }
}

/// A running PostgreSQL server with its data.
///
/// When this is dropped, or this process ends for whatever reason, the server is stopped
/// without waiting for it.
#[derive(Debug)]
pub struct Cluster {
    binaries: PostgresBinaries,
    home: Home,
    durability: Durability,
    settings: Vec<(String, String)>,
    server: Option<Supervised>,
}

impl Cluster {
    /// Starts the cluster in `folder`, with the data from an earlier start, if any.
    /// Creates the folder if needed.
    ///
    /// `settings` are names and values as in `postgresql.conf`; they apply to this run
    /// and override that file. If we are root, the server runs as the owner of the
    /// folder; if the folder is new or root's, as `postgres`, or else as `nobody`.
    ///
    /// Returns when the server accepts connections: usually within a second, or a few
    /// seconds the first time, and after at most four minutes.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] except those of [`PostgresBinaries::find`]; for example
    /// [`ClusterError::InUse`] while another process uses the folder. A server that isn't
    /// ready in time is stopped again.
    pub async fn start(
        binaries: &PostgresBinaries,
        folder: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let home = Home::claim(folder, binaries).await?;
        Self::launch(binaries, home, Durability::Kept, settings).await
    }

    /// Starts a new cluster in a folder of its own in the temporary directory. The folder
    /// is removed when the cluster is stopped or dropped, or this process ends. The
    /// server doesn't wait for the disk.
    ///
    /// Also removes folders that earlier temporary clusters left because their process
    /// and supervisor were both killed.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] except [`ClusterError::InUse`].
    pub async fn temporary(settings: &[(&str, &str)]) -> Result<Self> {
        Self::temporary_of(&PostgresBinaries::find()?, settings).await
    }

    /// Like [`temporary`](Self::temporary), with these programs.
    pub async fn temporary_of(
        binaries: &PostgresBinaries,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let home = Home::temporary(binaries).await?;
        Self::launch(binaries, home, Durability::Thrown, settings).await
    }

    /// Starts a hot standby of this cluster, which follows it until it is promoted
    /// (`pg_promote()`). It is a temporary cluster with the same settings.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] except [`ClusterError::InUse`]; also if `pg_basebackup` isn't
    /// installed.
    pub async fn standby(&self) -> Result<Self> {
        let home = Home::temporary(&self.binaries).await?;
        let settings = self.settings.clone();
        let mut standby = Self::stopped(&self.binaries, home, Durability::Thrown, settings);
        standby.copy_data(&self.home).await?;
        standby.start_server().await?;
        Ok(standby)
    }

    async fn launch(
        binaries: &PostgresBinaries,
        home: Home,
        durability: Durability,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let settings = durability
            .settings()
            .iter()
            .chain(settings)
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut cluster = Self::stopped(binaries, home, durability, settings);
        cluster.home.empty_log()?;
        if !cluster.data().exists() {
            cluster.create_data().await?;
        }
        cluster.start_server().await?;
        Ok(cluster)
    }

    fn stopped(
        binaries: &PostgresBinaries,
        home: Home,
        durability: Durability,
        settings: Vec<(String, String)>,
    ) -> Self {
        Self {
            binaries: binaries.clone(),
            home,
            durability,
            settings,
            server: None,
        }
    }

    /// Configuration for connecting to `database` as the superuser.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.home.sockets)
            .port(PORT)
            .user(SUPERUSER)
            .dbname(database);
        config
    }

    /// Like [`config`](Self::config), as a connection string for `psql`, other PostgreSQL
    /// programs, and `tokio-postgres`.
    pub fn url(&self, database: &str) -> String {
        let (host, database) = (quoted(&self.home.sockets), quoted(database));
        format!("host={host} port={PORT} user={SUPERUSER} dbname={database}")
    }

    /// The cluster's folder, with all links resolved.
    pub fn folder(&self) -> &Path {
        &self.home.folder
    }

    /// The server's process id; `None` if it isn't running.
    pub fn postmaster_pid(&self) -> Option<i32> {
        postmaster::find(&self.data()).map(Pid::as_raw)
    }

    /// Stops the server, if it is running, and starts it again with the same data and at
    /// the same socket. The server may have ended by itself before.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop) and [`start`](Self::start). Afterwards there may be no
    /// server; call this again to retry.
    pub async fn restart(&mut self, shutdown: Shutdown) -> Result<()> {
        self.stop_server(shutdown).await?;
        self.start_server().await
    }

    /// Stops the server in order, and after ten seconds immediately. Returns when it has
    /// ended: usually within a moment, and after [`STOP_LIMIT`] at most.
    ///
    /// # Errors
    ///
    /// [`ClusterError::StillRunning`] if it doesn't end.
    pub async fn stop(mut self) -> Result<()> {
        self.stop_server(Shutdown::Fast).await
    }

    fn data(&self) -> PathBuf {
        self.home
            .folder
            .join(format!("postgres-{}", self.binaries.major()))
    }
}

impl Drop for Cluster {
    /// The supervisor, if it is still running, notices that its pipe closes and does the
    /// rest.
    fn drop(&mut self) {
        let supervised = self
            .server
            .as_mut()
            .is_some_and(|server| matches!(server.ended(), Ok(None)));
        if self.durability == Durability::Thrown
            && !supervised
            && let Err(error) = home::remove(&self.home.folder)
        {
            debug!(%error, "could not remove a temporary cluster");
        }
    }
}

/// Quotes a value for a connection string, if necessary.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_connection_strings_as_they_are_read() {
        for value in [r"/tmp/it's a \ path", "", "/var/lib/tidings", "=", "\u{E9}"] {
            let text = format!("user={} dbname=x", quoted(value));
            let config: tokio_postgres::Config = text.parse().unwrap();
            assert_eq!(config.get_user(), Some(value), "{text}");
        }
        assert_eq!(quoted("/var/lib/tidings"), "/var/lib/tidings");
    }
}
