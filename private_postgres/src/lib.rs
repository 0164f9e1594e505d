//! A private PostgreSQL cluster: a server of one's own, below one folder,
//! reachable by nobody else.
//!
//! `tidings dev` keeps its database in one ([`Cluster::start`]); the tests
//! throw theirs away ([`Cluster::temporary`]).
//!
//! The server listens on a Unix socket in a folder that only its owner may
//! enter, and on no network. It never outlives this process, however this
//! process ends: a small shell script holds it and stops it when the pipe to
//! us closes.
//!
//! Below the cluster's folder are:
//!
//! | name | what |
//! | --- | --- |
//! | `lock` | held by the process that uses the folder |
//! | `running` | held by every process of a server, until the last has ended |
//! | `postgres-15` | the data, by major version: another major starts its own |
//! | `run` | the socket's folder |
//! | `postgres.log` | what `initdb` and `postgres` said since the last start |

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

/// The superuser, and the only user a new cluster has.
const SUPERUSER: &str = "tidings";
/// Only part of the socket's name, as there is no network to listen on. It is
/// said all the same because `PGPORT` would change the default.
const PORT: u16 = 5432;

/// How often to look again at what can't tell by itself that it changed.
const TICK: Duration = Duration::from_millis(5);

/// Why there is no cluster. Each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither `PATH` nor a usual place has a server.
    #[error(
        "no PostgreSQL server was found: install one (`apt-get install postgresql`, \
         `brew install postgresql`) or set PG_BIN_DIR to the folder that holds `postgres` \
         and `initdb`"
    )]
    NoBinaries,
    /// `PG_BIN_DIR` is set, and another server isn't looked for then.
    #[error(
        "PG_BIN_DIR is {}, but {reason}: set it to the folder that holds `postgres` and \
         `initdb`, or unset it",
        folder.display()
    )]
    BadBinDir {
        /// What it is set to.
        folder: PathBuf,
        /// What is wrong with that.
        reason: Unusable,
    },
    /// Another process uses this folder.
    #[error(
        "another `tidings dev` uses {}: stop it, or set TIDINGS_DEV_DATA to another folder",
        .0.display()
    )]
    InUse(PathBuf),
    /// This folder has contents that no cluster of ours put there. It is left
    /// alone: a cluster changes its folder's owner and permissions.
    #[error(
        "{} is not empty and holds no cluster of tidings: set TIDINGS_DEV_DATA to a folder \
         of its own, which need not exist",
        .0.display()
    )]
    NotOurs(PathBuf),
    /// We are root, which PostgreSQL refuses to run as.
    #[error(
        "PostgreSQL doesn't run as root, and there is neither a user `postgres` nor `nobody` \
         to run it as: run as an ordinary user, or create one of these"
    )]
    NoAccount,
    /// The user that the server is to run as can't reach its data.
    #[error(
        "PostgreSQL doesn't run as root but as `{account}`, which may not enter {}: set \
         TIDINGS_DEV_DATA to a folder elsewhere (for a temporary cluster: TMPDIR)",
        folder.display()
    )]
    FolderBarred {
        /// That user.
        account: String,
        /// The folder on the way to the data that is closed.
        folder: PathBuf,
    },
    /// The user that the server is to run as can't execute it.
    #[error(
        "PostgreSQL doesn't run as root but as `{account}`, which may not enter or execute {}: \
         set PG_BIN_DIR to the folder of a server that it may execute",
        path.display()
    )]
    BinariesBarred {
        /// That user.
        account: String,
        /// The program, or the folder on the way to it, that is closed.
        path: PathBuf,
    },
    /// The path of the socket in this folder would be too long for a Unix
    /// socket, or can't be said in a connection string, where a comma separates
    /// hosts.
    #[error(
        "{} can't hold the server's Unix socket, whose path must be UTF-8 without a comma and at \
         most {} bytes: set TIDINGS_DEV_DATA to another or shorter folder (for a temporary \
         cluster: TMPDIR)",
        .0.display(),
        if cfg!(target_os = "macos") { 103 } else { 107 }
    )]
    SocketPath(PathBuf),
    /// `initdb` or `postgres` gave up.
    #[error("{program} ended ({status}); {log}")]
    Ended {
        /// Which of them.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        log: LogTail,
    },
    /// `initdb` or `postgres` took too long.
    #[error("{program} wasn't ready within {} seconds; {log}", limit.as_secs())]
    NotReady {
        /// Which of them.
        program: &'static str,
        /// How long it was given.
        limit: Duration,
        /// What it said.
        log: LogTail,
    },
    /// A server of these data ignored being told to stop.
    #[error(
        "the PostgreSQL server of {} doesn't stop: end the process that the first line of its \
         postmaster.pid names, and try again",
        .0.display()
    )]
    StillRunning(PathBuf),
    /// The operating system refused something.
    #[error("can't {action} {}: {reason}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why it was refused.
        reason: io::Error,
    },
}

type Result<T, E = ClusterError> = std::result::Result<T, E>;

/// Says what was tried when the operating system refused it.
fn cannot<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ClusterError + 'a {
    move |reason| ClusterError::Io {
        action,
        path: path.to_owned(),
        reason,
    }
}

/// Asks every few milliseconds until there is an answer, or none within `limit`.
async fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let start = Instant::now();
    loop {
        match ask()? {
            None if start.elapsed() < limit => tokio::time::sleep(TICK).await,
            answer => return Ok(answer),
        }
    }
}

/// Stopping a server takes no longer than this.
pub const STOP_LIMIT: Duration = Duration::from_secs(35);

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends the sessions and writes everything to disk.
    Fast,
    /// Stops as if it had crashed: the next start recovers from the log.
    Immediate,
}

/// What becomes of the data when the cluster stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    Kept,
    Thrown,
}

impl Durability {
    /// Data that are thrown away needn't survive a crash of the machine. A
    /// commit waits for its place in the log all the same, as in production.
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kept => &[],
            Self::Thrown => &[("fsync", "off"), ("full_page_writes", "off")],
        }
    }
}

/// A running PostgreSQL server with its data.
///
/// Dropping it stops the server without waiting for it, as does the end of this
/// process for whatever reason.
#[derive(Debug)]
pub struct Cluster {
    binaries: PostgresBinaries,
    home: Home,
    durability: Durability,
    settings: Vec<(String, String)>,
    server: Option<Supervised>,
}

impl Cluster {
    /// Starts the cluster in `folder`, with the data that an earlier start left
    /// there, or none. Creates the folder if needed.
    ///
    /// `settings` are names and values as in `postgresql.conf`; they hold for
    /// this run and win over that file. As root, the server runs as the owner
    /// of the folder, and when it is new or root's, as `postgres` or else
    /// `nobody`.
    ///
    /// Returns when the server accepts connections: usually within a second, or
    /// a few the first time, and after four minutes at most.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] but those of [`PostgresBinaries::find`]; among them
    /// [`ClusterError::InUse`] while another process has the folder. A server
    /// that was started and isn't ready in time is stopped again.
    pub async fn start(
        binaries: &PostgresBinaries,
        folder: &Path,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let home = Home::claim(folder, binaries).await?;
        Self::launch(binaries, home, Durability::Kept, settings).await
    }

    /// Starts a new cluster in a folder of its own among the temporary files,
    /// which is removed when the cluster is stopped or dropped or this process
    /// ends. It doesn't wait for the disk.
    ///
    /// Also removes what earlier ones left there whose process and supervisor
    /// were both killed.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] but [`ClusterError::InUse`].
    pub async fn temporary(settings: &[(&str, &str)]) -> Result<Self> {
        Self::temporary_of(&PostgresBinaries::find()?, settings).await
    }

    /// The same, of these programs.
    ///
    /// # Errors
    ///
    /// The same.
    pub async fn temporary_of(
        binaries: &PostgresBinaries,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        let home = Home::temporary(binaries).await?;
        Self::launch(binaries, home, Durability::Thrown, settings).await
    }

    /// Starts a hot standby of this cluster, which follows it until it is
    /// promoted (`pg_promote()`). It is a temporary cluster with the same
    /// settings.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] but [`ClusterError::InUse`]; also if `pg_basebackup`
    /// isn't among the programs.
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

    /// How to connect to `database` as the superuser.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.home.sockets)
            .port(PORT)
            .user(SUPERUSER)
            .dbname(database);
        config
    }

    /// The same as a connection string, of the kind that `psql` and the other
    /// programs of PostgreSQL take, as does `tokio-postgres`.
    pub fn url(&self, database: &str) -> String {
        let (host, database) = (quoted(&self.home.sockets), quoted(database));
        format!("host={host} port={PORT} user={SUPERUSER} dbname={database}")
    }

    /// The cluster's folder, all links resolved.
    pub fn folder(&self) -> &Path {
        &self.home.folder
    }

    /// The process id of the server; none when it doesn't run.
    pub fn postmaster_pid(&self) -> Option<i32> {
        postmaster::find(&self.data()).map(Pid::as_raw)
    }

    /// Stops the server, if it runs, and starts it again with the same data and
    /// at the same socket. It may have ended before by itself.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop) and [`start`](Self::start). There may be no
    /// server then; another call may bring it back.
    pub async fn restart(&mut self, shutdown: Shutdown) -> Result<()> {
        self.stop_server(shutdown).await?;
        self.start_server().await
    }

    /// Stops the server in order, and after ten seconds at once. Returns when
    /// it has ended: usually within a moment, and after [`STOP_LIMIT`] at most.
    ///
    /// # Errors
    ///
    /// [`ClusterError::StillRunning`] if that didn't help either.
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
    /// The supervisor, if it still runs, sees its pipe close and does the rest.
    fn drop(&mut self) {
        let supervised = self
            .server
            .as_mut()
            .is_some_and(|server| matches!(server.ended(), Ok(None)));
        if self.durability == Durability::Thrown
            && !supervised
            && let Err(error) = home::remove(&self.home.folder)
        {
            debug!(%error, "a temporary cluster is left over");
        }
    }
}

/// Quotes a value for a connection string, if it needs that.
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
