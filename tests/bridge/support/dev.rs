//! `tidings dev` as a new user starts it: the real binary, in its own folder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::sys::signal::{Signal, kill};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::Notify,
    time::timeout,
};

use super::PATIENCE;

/// A folder that PostgreSQL's user can enter. It is removed on drop.
pub struct DataFolder(PathBuf);

impl DataFolder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidings-dev-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The output of a process so far, line by line.
#[derive(Clone, Default)]
struct Said {
    lines: Arc<Mutex<Vec<String>>>,
    more: Arc<Notify>,
}

impl Said {
    fn hear(&self, output: impl AsyncRead + Unpin + Send + 'static) {
        let said = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                said.lines.lock().expect("lines").push(line);
                said.more.notify_waiters();
            }
        });
    }

    /// Waits for the first line for which `find` returns a value, and returns that value.
    async fn until<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let hearing = async {
            loop {
                let more = self.more.notified();
                let found = self
                    .lines
                    .lock()
                    .expect("lines")
                    .iter()
                    .find_map(|line| find(line));
                match found {
                    Some(found) => return found,
                    None => more.await,
                }
            }
        };
        match timeout(PATIENCE, hearing).await {
            Ok(found) => found,
            Err(_) => panic!("it only said {:#?}", self.lines.lock().expect("lines")),
        }
    }
}

/// A running `tidings dev`.
pub struct Dev {
    child: Child,
    said: Said,
    pub address: SocketAddr,
    pub admin_address: SocketAddr,
    /// The shell command that sends a notification.
    pub psql: String,
}

/// The command, not yet started.
pub fn command(folder: &DataFolder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command
        .args(["dev", "--log-format=json"])
        .env("TIDINGS_LISTEN", "127.0.0.1:0")
        .env("TIDINGS_ADMIN_LISTEN", "127.0.0.1:0")
        .env("TIDINGS_DEV_DATA", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl Dev {
    pub async fn start(folder: &DataFolder) -> Self {
        Self::start_with(command(folder)).await
    }

    pub async fn start_with(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary");
        let said = Said::default();
        said.hear(child.stdout.take().expect("its output"));
        said.hear(child.stderr.take().expect("its log"));
        let psql = said
            .until(|line| Some(line.trim().to_owned()).filter(|line| line.contains("psql")))
            .await;
        let address = said.address("address").await;
        let admin_address = said.address("admin_address").await;
        Self {
            child,
            said,
            address,
            admin_address,
            psql,
        }
    }

    /// Waits until the output contains this.
    pub async fn until_said(&self, words: &str) {
        self.said
            .until(|line| line.contains(words).then_some(()))
            .await;
    }

    pub fn signal(&self, signal: Signal) {
        let id = self
            .child
            .id()
            .expect("a running process")
            .try_into()
            .expect("a process id");
        kill(nix::unistd::Pid::from_raw(id), signal).expect("a signal");
    }

    pub async fn end(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait())
            .await
            .expect("an end")
            .expect("a status")
    }

    /// Stops it with Ctrl-C.
    pub async fn stop(mut self) {
        self.signal(Signal::SIGINT);
        let status = self.end().await;
        assert!(status.success(), "{status}");
    }
}

impl Said {
    async fn address(&self, name: &str) -> SocketAddr {
        let address = self.until(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line[name].as_str()?.to_owned())
        });
        address.await.parse().expect("an address")
    }
}

/// Runs a line in a shell and returns its output.
pub async fn shell(line: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .await
        .expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
