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

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, DirBuilder, DirEntry, File, OpenOptions, Permissions, TryLockError},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStringExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
        net::SocketAddr,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::{Pid, Uid, User},
};
use tokio_postgres::NoTls;

/// The superuser, and the only user a new cluster has.
const SUPERUSER: &str = "tidings";
/// Only part of the socket's name, as there is no network to listen on. It is
/// said all the same because `PGPORT` would change the default.
const PORT: u16 = 5432;

const LOCK: &str = "lock";
const RUNNING: &str = "running";
const SOCKETS: &str = "run";
const LOG: &str = "postgres.log";

/// What the folders of temporary clusters are called once their lock is held,
/// and before.
const TEMPORARY: &str = "tidings-test-";
const UNLOCKED: &str = "tidings-making-";

/// How often to look again at what can't tell by itself that it changed.
const TICK: Duration = Duration::from_millis(5);
/// A killed process holds its locks a moment longer than it seems to live.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// Long, since after a crash the server first replays what it had logged.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to obey before it is told more firmly.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The same for the server of an earlier run, which was told already when that
/// run ended.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);

const LOG_TAIL_BYTES: u64 = 8 * 1024;
const LOG_TAIL_LINES: usize = 20;

/// Runs a command (`$2…`) until it ends or the one who holds the other end of
/// our standard input is gone; in that case also removes a folder (`$1`),
/// unless that is empty. A line on standard input is the name of a signal for
/// the command.
///
/// sh starts background commands with `SIGINT` ignored, so one that came before
/// the command could set its handlers would be lost; hence the `SIGTERM` first,
/// which ends such a command. To a running server they are a "smart" shutdown
/// that becomes a "fast" one at once.
///
/// The watcher, ended when the command has ended, thus tells whether it had seen
/// the end of the pipe: it fails unless it did.
///
/// Our standard output is the `running` file, which is locked for as long as any
/// process has it open. The command and all that it starts inherit it as their
/// descriptor 3, which no program of PostgreSQL closes or redirects.
const SUPERVISOR: &str = r#"
exec 3<&0 </dev/null
folder=$1
shift
"$@" 3<&1 >&2 &
command=$!
{
    while read -r signal; do kill -s "$signal" "$command"; done
    trap 'exit 0' TERM
    kill -s TERM "$command"
    kill -s INT "$command"
    exit 0
} <&3 2>/dev/null &
watcher=$!
exec 3<&-
wait "$command"
status=$?
kill -s TERM "$watcher" 2>/dev/null
if wait "$watcher" 2>/dev/null && [ -n "$folder" ]; then rm -rf "$folder"; fi
exit "$status"
"#;

/// Prints the first of the paths that whoever runs it can't enter or execute.
const FIRST_BARRED: &str = r#"for path do [ -x "$path" ] || { printf %s "$path"; exit 0; }; done"#;

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

/// Why a folder isn't one of PostgreSQL's binaries.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// This program is missing.
    #[error("it holds no `{0}`")]
    Lacks(&'static str),
    /// `postgres` is there, but it can't be executed.
    #[error("its `postgres` can't be run ({0})")]
    CannotRun(#[source] io::Error),
    /// `postgres --version` says something else than its version.
    #[error("its `postgres --version` says {0:?}")]
    UnknownVersion(String),
}

/// The end of a log file: twenty lines at most.
#[derive(Debug)]
pub struct LogTail {
    log: PathBuf,
    lines: String,
}

impl LogTail {
    fn read(log: PathBuf) -> Self {
        let lines = match read_end(&log) {
            Ok(end) => last_lines(&end),
            Err(error) => format!("({error})"),
        };
        Self { log, lines }
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, lines } = self;
        write!(f, "the last lines of {} are:\n{lines}", log.display())
    }
}

/// The last kilobytes of a file.
fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    Ok(String::from_utf8_lossy(&end).into_owned())
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
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

/// An installed PostgreSQL: the folder that holds `postgres` and `initdb`.
#[derive(Debug, Clone)]
pub struct PostgresBinaries {
    folder: PathBuf,
    version: Version,
}

impl PostgresBinaries {
    /// Takes the folder that `PG_BIN_DIR` names, or else the highest version
    /// found on `PATH` and where Debian, Red Hat, Homebrew and Postgres.app
    /// put theirs.
    ///
    /// Blocks for some milliseconds: it asks each that it finds for its version.
    ///
    /// # Errors
    ///
    /// [`ClusterError::BadBinDir`] when `PG_BIN_DIR` is set and unusable,
    /// [`ClusterError::NoBinaries`] when it is unset and nothing is found.
    pub fn find() -> Result<Self> {
        match env::var_os("PG_BIN_DIR").filter(|folder| !folder.is_empty()) {
            Some(folder) => {
                let folder = PathBuf::from(folder);
                Self::at(&folder).map_err(|reason| ClusterError::BadBinDir { folder, reason })
            }
            None => usual_folders()
                .iter()
                .rev() // Of equals, the last one is the maximum: the one on `PATH`.
                .filter_map(|folder| Self::at(folder).ok())
                .max_by_key(|found| found.version)
                .ok_or(ClusterError::NoBinaries),
        }
    }

    fn at(folder: &Path) -> Result<Self, Unusable> {
        let folder = without_links(folder);
        for name in ["postgres", "initdb"] {
            if !folder.join(name).is_file() {
                return Err(Unusable::Lacks(name));
            }
        }
        let said = Command::new(folder.join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(Unusable::CannotRun)?
            .stdout;
        let said = String::from_utf8_lossy(&said);
        match Version::parse(&said) {
            Some(version) => Ok(Self { folder, version }),
            None => Err(Unusable::UnknownVersion(said.trim().to_owned())),
        }
    }

    /// The folder that holds `postgres` and `initdb`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The major version, such as 15.
    pub fn major(&self) -> u32 {
        self.version.major
    }

    /// The `psql` beside the server, if it was installed.
    pub fn psql(&self) -> Option<PathBuf> {
        Some(self.folder.join("psql")).filter(|psql| psql.is_file())
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Where the programs of a folder of links really are.
///
/// A link to `postgres` runs, but then `postgres` looks beside the link for its
/// other files. A wrapper script, on the other hand, works only where it is.
fn without_links(folder: &Path) -> PathBuf {
    let holds_both = |folder: &PathBuf| {
        ["postgres", "initdb"]
            .iter()
            .all(|name| folder.join(name).is_file())
    };
    fs::canonicalize(folder.join("postgres"))
        .ok()
        .and_then(|postgres| postgres.parent().map(Path::to_owned))
        .filter(holds_both)
        .or_else(|| std::path::absolute(folder).ok())
        .unwrap_or_else(|| folder.to_owned())
}

/// The folders that may hold a server, existing or not.
fn usual_folders() -> Vec<PathBuf> {
    const PLACES: [(&str, &str); 5] = [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/Applications/Postgres.app/Contents/Versions", ""),
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = PLACES.iter().flat_map(|(parent, prefix)| {
        subfolders(Path::new(parent), prefix).map(|found| found.path().join("bin"))
    });
    env::split_paths(&path).chain(installed).collect()
}

/// What in `parent` has a name that begins with `prefix`; nothing if `parent`
/// can't be read.
fn subfolders(parent: &Path, prefix: &str) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(move |entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(prefix))
        })
}

/// The version of a server. A later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    stage: Stage,
}

/// How far along its major version a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Development,
    Beta(u32),
    Candidate(u32),
    Release(u32),
}

impl Version {
    /// Reads what `postgres --version` prints, such as
    /// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn parse(said: &str) -> Option<Self> {
        let (_product, version) = said.strip_prefix("postgres (")?.split_once(") ")?;
        let (major, rest) = leading_number(version)?;
        let stage = if let Some(beta) = rest.strip_prefix("beta") {
            Stage::Beta(leading_number(beta)?.0)
        } else if let Some(candidate) = rest.strip_prefix("rc") {
            Stage::Candidate(leading_number(candidate)?.0)
        } else if let Some(minor) = rest.strip_prefix('.') {
            Stage::Release(leading_number(minor)?.0)
        } else {
            Stage::Development
        };
        Some(Self { major, stage })
    }
}

/// The number that `text` begins with, and what follows it.
fn leading_number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// The user that the server runs as when we are root.
#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// Whom to run the server of `folder` as: nobody else unless we are root.
    ///
    /// An existing folder keeps its owner, so that `sudo tidings dev` doesn't
    /// take the data away from the one who uses them without `sudo`.
    fn for_folder(folder: &Path) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let owner = fs::metadata(folder)
            .ok()
            .map(|metadata| Uid::from_raw(metadata.uid()))
            .filter(|owner| !owner.is_root())
            .and_then(|owner| User::from_uid(owner).ok().flatten());
        let by_name = |name: &&str| User::from_name(name).ok().flatten();
        owner
            .or_else(|| ["postgres", "nobody"].iter().find_map(by_name))
            .map(|user| {
                Some(Self {
                    name: user.name,
                    uid: user.uid.as_raw(),
                    gid: user.gid.as_raw(),
                })
            })
            .ok_or(ClusterError::NoAccount)
    }

    /// The first of `paths` that this user may not enter or execute.
    ///
    /// The answer comes from the operating system and not from permission
    /// bits, which are not all there is to it.
    fn first_barred<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Result<Option<PathBuf>> {
        let shell = Path::new("/bin/sh");
        let output = Command::new(shell)
            .args(["-c", FIRST_BARRED, "tidings"])
            .args(paths)
            .current_dir("/")
            .uid(self.uid)
            .gid(self.gid)
            .stdin(Stdio::null())
            .output()
            .map_err(cannot("run as another user", shell))?;
        let barred = PathBuf::from(OsString::from_vec(output.stdout));
        Ok(Some(barred).filter(|path| !path.as_os_str().is_empty()))
    }

    fn must_enter(&self, folder: &Path) -> Result<()> {
        match self.first_barred(from_the_root(folder))? {
            None => Ok(()),
            Some(folder) => Err(ClusterError::FolderBarred {
                account: self.name.clone(),
                folder,
            }),
        }
    }

    fn must_execute(&self, binaries: &PostgresBinaries) -> Result<()> {
        let programs = [binaries.program("postgres"), binaries.program("initdb")];
        let paths = from_the_root(&binaries.folder).chain(programs.iter().map(PathBuf::as_path));
        match self.first_barred(paths)? {
            None => Ok(()),
            Some(path) => Err(ClusterError::BinariesBarred {
                account: self.name.clone(),
                path,
            }),
        }
    }
}

/// `/`, each folder on the way to `folder`, and `folder` itself.
fn from_the_root(folder: &Path) -> impl Iterator<Item = &Path> {
    let mut folders: Vec<&Path> = folder.ancestors().collect();
    folders.reverse();
    folders.into_iter()
}

/// The cluster's folder, with its lock held.
#[derive(Debug)]
struct Home {
    folder: PathBuf,
    /// The socket's folder, which is known to be fit for a socket.
    sockets: String,
    account: Option<Account>,
    _lock: File,
}

impl Home {
    /// Makes `folder` ready for a cluster, and ours alone.
    async fn claim(folder: &Path, binaries: &PostgresBinaries) -> Result<Self> {
        let folder = &resolved(folder)?;
        let sockets = sockets_folder(folder)?;
        let account = Account::for_folder(folder)?;
        if let Some(account) = &account {
            account.must_execute(binaries)?;
            account.must_enter(folder.parent().unwrap_or(folder))?;
        }
        refuse_foreign(folder)?;
        make_private(folder, account.as_ref())?;

        let path = folder.join(LOCK);
        let lock = open(&path, account.as_ref())?;
        poll(LOCK_LIMIT, || try_lock(&lock, &path))
            .await?
            .ok_or_else(|| ClusterError::InUse(folder.clone()))?;
        Ok(Self {
            folder: folder.clone(),
            sockets,
            account,
            _lock: lock,
        })
    }

    /// Gives the folder another name beside the one it has.
    fn rename(&mut self, name: &str) -> Result<()> {
        let folder = self.folder.with_file_name(name);
        fs::rename(&self.folder, &folder).map_err(cannot("rename", &self.folder))?;
        self.sockets = sockets_folder(&folder)?;
        self.folder = folder;
        Ok(())
    }

    fn open(&self, name: &str) -> Result<File> {
        open(&self.folder.join(name), self.account.as_ref())
    }

    fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    fn empty_log(&self) -> Result<()> {
        let log = self.open(LOG)?;
        log.set_len(0).map_err(cannot("empty", &self.log()))
    }

    /// Makes an empty folder for the socket. What was in it is of no use: an
    /// old socket is dead, and its lock file may name a process that by now is
    /// another one, which the server would take for its rival.
    fn renew_sockets(&self) -> Result<()> {
        let sockets = Path::new(&self.sockets);
        remove(sockets)?;
        make_private(sockets, self.account.as_ref())
    }
}

/// The real path of a folder that need not exist, though its parents do
/// afterwards.
fn resolved(folder: &Path) -> Result<PathBuf> {
    let folder = std::path::absolute(folder).map_err(cannot("find", folder))?;
    if folder.exists() {
        return fs::canonicalize(&folder).map_err(cannot("find", &folder));
    }
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Ok(folder);
    };
    fs::create_dir_all(parent).map_err(cannot("create", parent))?;
    let parent = fs::canonicalize(parent).map_err(cannot("find", parent))?;
    Ok(parent.join(name))
}

/// Where in `folder` the socket is to be, if that can be.
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

/// Keeps us from taking over, or removing, a folder that has another use.
fn refuse_foreign(folder: &Path) -> Result<()> {
    let contents = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        contents => contents.map_err(cannot("read", folder))?,
    };
    if contents.count() == 0 || folder.join(LOCK).is_file() {
        return Ok(());
    }
    Err(ClusterError::NotOurs(folder.to_owned()))
}

/// Makes sure that `folder` exists and that only its user may enter it.
fn make_private(folder: &Path, account: Option<&Account>) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .map_err(cannot("create", folder))?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))
        .map_err(cannot("make private", folder))?;
    match account {
        Some(account) => std::os::unix::fs::chown(folder, Some(account.uid), Some(account.gid))
            .map_err(cannot("change the owner of", folder)),
        None => Ok(()),
    }
}

/// Opens a file to append to, as its user would.
fn open(path: &Path, account: Option<&Account>) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(cannot("open", path))?;
    if let Some(account) = account {
        std::os::unix::fs::fchown(&file, Some(account.uid), Some(account.gid))
            .map_err(cannot("change the owner of", path))?;
    }
    Ok(file)
}

/// Removes a folder with all that is in it, if it exists.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(cannot("remove", folder)(error))
        }
        _ => Ok(()),
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

fn try_lock(file: &File, path: &Path) -> Result<Option<()>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(())),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(cannot("lock", path)(error)),
    }
}

/// Removes what temporary clusters left in `parent` when their processes were
/// killed. What can't be removed now is left to the next.
fn sweep(parent: &Path, owner: u32) {
    for entry in subfolders(parent, TEMPORARY) {
        if is_leftover(&entry, owner)
            && let Err(error) = remove(&entry.path())
        {
            tracing::debug!(%error, "a temporary cluster is left over");
        }
    }
}

/// Whether this is the folder of a temporary cluster that has no process.
///
/// Such a folder gets its name only when its lock is held, and a lock once let
/// go is never taken again. One without a lock is half removed.
fn is_leftover(entry: &DirEntry, owner: u32) -> bool {
    let is_ours = entry
        .metadata()
        .is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == owner);
    is_ours
        && match File::open(entry.path().join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
}

/// A command under the supervisor script. Dropping this ends the command.
#[derive(Debug)]
struct Supervised {
    supervisor: Child,
    /// The pipe whose end is the command's end.
    orders: ChildStdin,
}

impl Supervised {
    /// Whether it has ended, and how.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.supervisor
            .try_wait()
            .map_err(cannot("wait for", Path::new("/bin/sh")))
    }

    fn order(&mut self, shutdown: Shutdown) {
        // It fails only when nobody reads any more, because all has ended.
        let _ = writeln!(self.orders, "{}", shutdown.signal());
    }
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends the sessions and writes everything to disk.
    Fast,
    /// Stops as if it had crashed: the next start recovers from the log.
    Immediate,
}

impl Shutdown {
    /// The signal that asks the server for it.
    fn signal(self) -> &'static str {
        match self {
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
        }
    }
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
    /// a few the first time, and after three minutes at most.
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
    /// Also removes what earlier ones left: all, when their supervisors were
    /// killed too; an empty folder, when the server's user may not remove that
    /// from its parent.
    ///
    /// # Errors
    ///
    /// Any [`ClusterError`] but [`ClusterError::InUse`].
    pub async fn temporary(settings: &[(&str, &str)]) -> Result<Self> {
        let binaries = PostgresBinaries::find()?;
        let parent = env::temp_dir();
        // A seed of the standard library's hash maps is random enough for a name.
        let name = format!("{:016x}", RandomState::new().hash_one(()));
        let mut home = Home::claim(&parent.join(format!("{UNLOCKED}{name}")), &binaries).await?;
        home.rename(&format!("{TEMPORARY}{name}"))?;
        let owner = home
            .account
            .as_ref()
            .map_or_else(|| Uid::effective().as_raw(), |account| account.uid);
        sweep(&parent, owner);
        Self::launch(&binaries, home, Durability::Thrown, settings).await
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
        let mut cluster = Self {
            binaries: binaries.clone(),
            home,
            durability,
            settings,
            server: None,
        };
        cluster.home.empty_log()?;
        if !cluster.data().exists() {
            cluster.create_data().await?;
            // What a successful `initdb` said would only hide what comes next.
            cluster.home.empty_log()?;
        }
        cluster.start_server().await?;
        Ok(cluster)
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

    /// The file that the server logs to. It is emptied at [`start`](Self::start).
    pub fn log_path(&self) -> PathBuf {
        self.home.log()
    }

    /// The process id of the server; none when it doesn't run.
    pub fn postmaster_pid(&self) -> Option<i32> {
        postmaster(&self.data()).map(Pid::as_raw)
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
    /// it has ended: usually within a moment, and after 35 seconds at most.
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

    /// Runs `initdb` beside the data's final place, so that one that was cut
    /// short is never taken for a whole one.
    async fn create_data(&mut self) -> Result<()> {
        let running = self.claim_running().await?;
        let data = self.data();
        let unfinished = data.with_extension("new");
        remove(&unfinished)?;

        let mut command: Vec<OsString> = vec![self.binaries.program("initdb").into()];
        command.extend(["-D".into(), unfinished.clone().into()]);
        command.extend(["-U", SUPERUSER, "--encoding=UTF8", "--locale=C"].map(OsString::from));
        command.extend(["--auth-local=trust", "--auth-host=reject"].map(OsString::from));
        if self.durability == Durability::Thrown {
            command.push("--no-sync".into());
        }
        let mut initdb = self.supervise(running, &command)?;
        let status = poll(INITDB_LIMIT, || initdb.ended())
            .await?
            .ok_or_else(|| self.not_ready("initdb", INITDB_LIMIT))?;
        if !status.success() {
            return Err(self.ended("initdb", status));
        }
        fs::rename(&unfinished, &data).map_err(cannot("rename", &unfinished))
    }

    /// Starts `postgres` and waits until it accepts connections.
    async fn start_server(&mut self) -> Result<()> {
        let running = self.claim_running().await?;
        self.home.renew_sockets()?;
        forget_dead_server(&self.data())?;

        let port = PORT.to_string();
        let fixed = [
            ("listen_addresses", ""),
            ("unix_socket_directories", &self.home.sockets),
            ("port", &port),
        ];
        let chosen = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let mut command: Vec<OsString> = vec![self.binaries.program("postgres").into()];
        command.extend(["-D".into(), self.data().into()]);
        for (name, value) in chosen.chain(fixed) {
            command.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        let mut server = self.supervise(running, &command)?;
        self.await_ready(&mut server).await?;
        self.server = Some(server);
        Ok(())
    }

    async fn await_ready(&self, server: &mut Supervised) -> Result<()> {
        let config = self.config("postgres");
        let ready = async {
            while config.connect(NoTls).await.is_err() {
                if let Some(status) = server.ended()? {
                    return Err(self.ended("postgres", status));
                }
                tokio::time::sleep(TICK).await;
            }
            Ok(())
        };
        match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.not_ready("postgres", START_LIMIT)),
        }
    }

    /// Returns when no process of the server is left.
    async fn stop_server(&mut self, shutdown: Shutdown) -> Result<()> {
        for shutdown in [shutdown, Shutdown::Immediate] {
            let Some(server) = &mut self.server else {
                break;
            };
            server.order(shutdown);
            if poll(STOP_LIMIT, || server.ended()).await?.is_some() {
                self.server = None;
            }
        }
        // When the first process of the server or its supervisor was killed,
        // the others end a little later.
        self.claim_running().await.map(drop)
    }

    /// Waits until no process of an earlier server or `initdb` is left, of this
    /// run or of one that was killed; after a while, asks it to stop. Returns
    /// the file that the next one is to hold.
    async fn claim_running(&self) -> Result<File> {
        let path = self.home.folder.join(RUNNING);
        let running = self.home.open(RUNNING)?;
        let data = self.data();
        for signal in [None, Some(Signal::SIGINT), Some(Signal::SIGQUIT)] {
            if let (Some(signal), Some(pid)) = (signal, postmaster(&data)) {
                tracing::warn!(%pid, %signal, "a PostgreSQL server is still there; telling it to stop");
                // It fails when the server has just ended, and then is not needed.
                let _ = signal::kill(pid, signal);
            }
            if poll(ORPHAN_LIMIT, || try_lock(&running, &path))
                .await?
                .is_some()
            {
                return Ok(running);
            }
        }
        Err(ClusterError::StillRunning(data))
    }

    /// Starts a command under the supervisor, as the server's user and out of
    /// reach of the terminal: Ctrl-C is for us, who stop the server in order.
    fn supervise(&self, running: File, command: &[OsString]) -> Result<Supervised> {
        let shell = Path::new("/bin/sh");
        let folder_to_remove = match self.durability {
            Durability::Kept => OsStr::new(""),
            Durability::Thrown => self.home.folder.as_os_str(),
        };
        let mut supervisor = Command::new(shell);
        supervisor
            .args(["-c", SUPERVISOR, "tidings-postgres"])
            .arg(folder_to_remove)
            .args(command)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(running)
            .stderr(self.home.open(LOG)?);
        if let Some(account) = &self.home.account {
            supervisor.uid(account.uid).gid(account.gid);
        }
        let mut supervisor = supervisor.spawn().map_err(cannot("run", shell))?;
        let orders = supervisor
            .stdin
            .take()
            .expect("its standard input is a pipe");
        Ok(Supervised { supervisor, orders })
    }

    fn ended(&self, program: &'static str, status: ExitStatus) -> ClusterError {
        let log = LogTail::read(self.home.log());
        ClusterError::Ended {
            program,
            status,
            log,
        }
    }

    fn not_ready(&self, program: &'static str, limit: Duration) -> ClusterError {
        let log = LogTail::read(self.home.log());
        ClusterError::NotReady {
            program,
            limit,
            log,
        }
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
            && let Err(error) = remove(&self.home.folder)
        {
            tracing::debug!(%error, "a temporary cluster is left over");
        }
    }
}

/// The live server of `data`, if it has written down its process id.
fn postmaster(data: &Path) -> Option<Pid> {
    noted_pid(data).filter(|&pid| serves(pid, data).unwrap_or_else(|| is_alive(pid)))
}

/// Removes the process id of a dead server. By now it may be that of something
/// else, or of a dead process that nobody waits for; both easily happen in
/// containers, and the server would take either for its rival and not start.
fn forget_dead_server(data: &Path) -> Result<()> {
    match noted_pid(data) {
        Some(pid) if serves(pid, data) == Some(false) => {
            let file = pid_file(data);
            fs::remove_file(&file).map_err(cannot("remove", &file))
        }
        _ => Ok(()),
    }
}

fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

fn noted_pid(data: &Path) -> Option<Pid> {
    let noted = fs::read_to_string(pid_file(data)).ok()?;
    let pid = noted.lines().next()?.trim().parse().ok()?;
    // Zero and less are no processes but groups of them.
    (pid > 0).then(|| Pid::from_raw(pid))
}

fn is_alive(pid: Pid) -> bool {
    signal::kill(pid, None).is_ok()
}

/// Whether a process is the server of `data`, which has that as its working
/// folder. Without `/proc` there is no telling.
fn serves(pid: Pid, data: &Path) -> Option<bool> {
    let working_folder = |process: &str| fs::read_link(format!("/proc/{process}/cwd")).ok();
    working_folder("self")?;
    Some(working_folder(&pid.to_string()).as_deref() == Some(data))
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

    fn version(number: &str) -> Version {
        Version::parse(&format!("postgres (PostgreSQL) {number}\n")).unwrap()
    }

    #[test]
    fn reads_the_version_that_a_distribution_adds_to() {
        let version = version("15.18 (Debian 15.18-0+deb12u1)");
        assert_eq!((version.major, version.stage), (15, Stage::Release(18)));
    }

    #[test]
    fn orders_versions_by_age() {
        let in_order = [
            "9.6.24", "15.2", "15.18", "18devel", "18beta1", "18beta2", "18rc1", "18.0", "18.10",
        ];
        assert!(
            in_order
                .map(version)
                .is_sorted_by(|earlier, later| earlier < later)
        );
    }

    #[test]
    fn takes_nothing_else_for_a_version() {
        for said in [
            "",
            "postgres",
            "postgres (PostgreSQL) ",
            "mise ERROR 15.2",
            "postgres (PostgreSQL) 99999999999.1",
        ] {
            assert_eq!(Version::parse(said), None, "{said:?}");
        }
    }

    #[test]
    fn quotes_connection_strings_as_they_are_read() {
        for value in [r"/tmp/it's a \ path", "", "/var/lib/tidings", "=", "\u{E9}"] {
            let text = format!("user={} dbname=x", quoted(value));
            let config: tokio_postgres::Config = text.parse().unwrap();
            assert_eq!(config.get_user(), Some(value), "{text}");
        }
        assert_eq!(quoted("/var/lib/tidings"), "/var/lib/tidings");
    }

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

    #[test]
    fn keeps_the_last_lines() {
        let text: String = (1..=LOG_TAIL_LINES + 2)
            .map(|line| format!("{line}\n"))
            .collect();
        let kept = last_lines(&text);
        assert!(kept.starts_with("3\n4\n"));
        assert_eq!(kept.lines().count(), LOG_TAIL_LINES);
        assert_eq!(last_lines(""), "");
    }
}
