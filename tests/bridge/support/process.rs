//! `tidings serve` as a separate process.

use std::{
    env,
    fmt::{Debug, Display},
    fs,
    net::SocketAddr,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::{interval, timeout},
};

use super::{
    PATIENCE,
    bridge::{ASKS_AGAIN, SECRET, refused, token},
    database::Database,
    event_source::{EventSource, Response, get},
    until, with_room,
};

/// A bridge in its own process, and the address that it listens on.
pub async fn serve(database: &Database, more: &[&str]) -> (Child, SocketAddr) {
    let served = Served::start(database, more).await;
    (served.child, served.address)
}

/// Another program to test, such as an earlier release, to check that the attack tests fail with
/// it.
pub const OTHER_PROGRAM: &str = "TIDINGS_TEST_PROGRAM";

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tidings");

/// Starts the bridge and doesn't wait until it is ready.
pub fn spawn(database: &Database, more: &[&str], environment: &[(&str, &str)]) -> Child {
    let program = env::var(OTHER_PROGRAM).unwrap_or_else(|_| PROGRAM.to_owned());
    spawn_program(&program, database, more, environment)
}

fn spawn_program(
    program: &str,
    database: &Database,
    more: &[&str],
    environment: &[(&str, &str)],
) -> Child {
    spawn_command(Command::new(program), database, more, environment)
}

fn spawn_command(
    mut command: Command,
    database: &Database,
    more: &[&str],
    environment: &[(&str, &str)],
) -> Child {
    command
        .args([
            "serve",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
        ])
        .env("TIDINGS_LOG_FORMAT", "json")
        // Not as an argument, because an earlier release doesn't know the flag.
        .env("TIDINGS_SETTLE", "0s")
        .args(with_room(more))
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // A setting that is given as a file must not also be given as a value.
    for name in environment
        .iter()
        .filter_map(|(name, _)| name.strip_suffix("_FILE"))
    {
        command.env_remove(name);
    }
    command.spawn().expect("the binary")
}

/// Starts a program with two sockets the way a service manager passes them: open as file
/// descriptors 3 and 4, with `LISTEN_PID` set to that process. This command receives them as its
/// standard input and output.
const PASSES_SOCKETS: &str = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ exec \"$0\" \"$@\"";

/// Starts the bridge with sockets that a service manager has opened, each with its name. Doesn't
/// wait until it is ready.
pub fn spawn_with_sockets(
    database: &Database,
    more: &[&str],
    sockets: Vec<(&str, OwnedFd)>,
) -> Child {
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    let (names, count) = (names.join(":"), sockets.len().to_string());
    let mut shell = Command::new("sh");
    shell.args(["-c", PASSES_SOCKETS, PROGRAM]);
    let mut sockets = sockets.into_iter().map(|(_, socket)| Stdio::from(socket));
    shell
        .stdin(sockets.next().unwrap_or_else(Stdio::null))
        .stdout(sockets.next().unwrap_or_else(Stdio::null));
    assert!(sockets.next().is_none(), "no more than two");
    let environment = [
        ("LISTEN_FDS", count.as_str()),
        ("LISTEN_FDNAMES", names.as_str()),
    ];
    spawn_command(shell, database, more, &environment)
}

/// What `tidings serve` logged when it refused to start.
pub async fn refusal(database: &Database, more: &[&str]) -> String {
    let ended = timeout(PATIENCE, spawn(database, more, &[]).wait_with_output()).await;
    let output = ended.expect("it refuses").expect("its log");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A bridge in its own process, of which a test sees what the operator sees. Dropping it kills it.
pub struct Served {
    child: Child,
    address: SocketAddr,
    admin_address: SocketAddr,
    /// Lines from before the bridge reported its addresses, not yet read by the test. Later ones
    /// arrive in `log`.
    said: std::vec::IntoIter<Value>,
    log: mpsc::UnboundedReceiver<Value>,
    /// All lines logged up to that report.
    early: Vec<Value>,
}

/// Resources that a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Resident memory now, and its peak.
    pub resident_bytes: usize,
    pub peak_bytes: usize,
    pub threads: usize,
    pub files: usize,
}

impl Served {
    pub async fn start(database: &Database, more: &[&str]) -> Self {
        Self::start_in(database, more, &[]).await
    }

    /// The same with additional environment variables.
    pub async fn start_in(
        database: &Database,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::of(spawn(database, more, environment)).await
    }

    /// Starts a bridge from another program, such as an earlier release.
    pub async fn start_program(program: &str, database: &Database, more: &[&str]) -> Self {
        Self::of(spawn_program(program, database, more, &[])).await
    }

    /// Starts a bridge with sockets that a service manager has opened, each with its name.
    pub async fn start_with_sockets(
        database: &Database,
        more: &[&str],
        sockets: Vec<(&str, OwnedFd)>,
    ) -> Self {
        Self::of(spawn_with_sockets(database, more, sockets)).await
    }

    async fn of(mut child: Child) -> Self {
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let (sender, mut log) = mpsc::unbounded_channel();
        let mut said = Vec::new();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Keep reading even if the receiver is gone, so that the pipe doesn't fill up.
                let Ok(entry) = serde_json::from_str(&line) else {
                    panic!("it doesn't start: {line}")
                };
                let _ = sender.send(entry);
            }
        });
        let address_in = |line: &Value, name: &str| line[name].as_str()?.parse().ok();
        let mut early = Vec::new();
        let (address, admin_address) = loop {
            let line: Value = log.recv().await.expect("it says where it listens");
            early.push(line.clone());
            if let (Some(address), Some(admin_address)) = (
                address_in(&line, "address"),
                address_in(&line, "admin_address"),
            ) {
                break (address, admin_address);
            }
            said.push(line);
        };
        Self {
            child,
            address,
            admin_address,
            said: said.into_iter(),
            log,
            early,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Opens a stream for `user`, as a new client or with a last event id.
    pub async fn connect(&self, user: &str, last_event_id: Option<&str>) -> EventSource {
        let bearer = format!("Bearer {}", token(user));
        let mut headers = vec![("Authorization", bearer.as_str())];
        headers.extend(last_event_id.map(|id| ("Last-Event-ID", id)));
        EventSource::open(self.address, "/stream", &headers).await
    }

    /// A stream of `user` that has received its backlog and is live.
    pub async fn connect_live(&self, user: &str) -> EventSource {
        let mut source = self.connect(user, None).await;
        until(&mut source, "tidings.caught-up").await;
        source
    }

    /// Polls until the metric with this name and labels has a wanted value.
    pub async fn until_metric(&self, name: &str, is_wanted: impl Fn(f64) -> bool) {
        let mut last = None;
        let asking = async {
            let mut pace = interval(ASKS_AGAIN);
            while !last.is_some_and(&is_wanted) {
                pace.tick().await;
                let metrics = get(self.admin_address, "/metrics", &[]).await;
                let metrics = metrics.expect("an answer").text().await;
                let value = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
                last = metrics.lines().find_map(value);
            }
        };
        if timeout(PATIENCE, asking).await.is_err() {
            panic!("{name} was {last:?}");
        }
    }

    /// How many requests were rejected for this reason.
    pub async fn refused(&self, reason: &str) -> u64 {
        let metrics = get(self.admin_address, "/metrics", &[]).await;
        refused(&metrics.expect("an answer").text().await, reason)
    }

    pub async fn ready(&self) -> Response {
        get(self.admin_address, "/health/ready", &[])
            .await
            .expect("an answer")
    }

    /// Waits until the readiness endpoint returns this status.
    pub async fn until_ready_is(&self, status: u16) {
        self.until_readiness(format_args!("{status}"), |now, _| now == status)
            .await;
    }

    /// Waits until readiness fails with a reason that contains `text`.
    pub async fn until_deaf(&self, text: &str) {
        self.until_readiness(format_args!("not ready: {text}"), |status, body| {
            let body: Value = serde_json::from_str(body).expect("JSON");
            status == 503 && body["reason"].as_str().is_some_and(|r| r.contains(text))
        })
        .await;
    }

    /// Waits until readiness reports that marks can't be written, with this reason.
    pub async fn until_unmarked(&self, why: &str) {
        self.until_readiness(format_args!("without marks: {why}"), |_, body| {
            let body: Value = serde_json::from_str(body).expect("JSON");
            body["marks"].as_str().is_some_and(|r| r.contains(why))
        })
        .await;
    }

    async fn until_readiness(&self, what: impl Display, is_wanted: impl Fn(u16, &str) -> bool) {
        let mut last = String::new();
        let asking = async {
            let mut pace = interval(ASKS_AGAIN);
            loop {
                pace.tick().await;
                let response = self.ready().await;
                let status = response.status();
                last = response.text().await;
                if is_wanted(status, &last) {
                    return;
                }
            }
        };
        if timeout(PATIENCE, asking).await.is_err() {
            panic!("/health/ready never was {what}, but {last}");
        }
    }

    /// Skips log lines up to the first one with this level and text, and returns it.
    pub async fn until_logged(&mut self, level: &str, text: &str) -> Value {
        let reading = async {
            loop {
                let line = match self.said.next() {
                    Some(line) => line,
                    None => self.log.recv().await.expect("a line of its log"),
                };
                if line["level"] == level && line.to_string().contains(text) {
                    return line;
                }
            }
        };
        let outcome = timeout(PATIENCE, reading).await;
        outcome.unwrap_or_else(|_| panic!("never in the log: {level} {text}"))
    }

    pub fn vitals(&self) -> Stats {
        let process = format!("/proc/{}", self.child.id().expect("a running process"));
        let status = fs::read_to_string(format!("{process}/status")).expect("its status");
        let number = |name: &str| -> usize {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.and_then(|value| value.parse().ok()).expect(name)
        };
        Stats {
            resident_bytes: number("VmRSS:") << 10,
            peak_bytes: number("VmHWM:") << 10,
            threads: number("Threads:"),
            files: fs::read_dir(format!("{process}/fd"))
                .expect("its files")
                .count(),
        }
    }

    /// Polls until the process's resource usage is as wanted.
    pub async fn until_vitals(&self, wanted: impl Fn(Stats) -> bool, as_what: impl Debug) {
        let looking = async {
            while !wanted(self.vitals()) {
                tokio::task::yield_now().await;
            }
        };
        let outcome = timeout(PATIENCE, looking).await;
        outcome.unwrap_or_else(|_| panic!("{:?}, never {as_what:?}", self.vitals()));
    }

    pub fn signal(&self, wanted: Signal) {
        signal(&self.child, wanted);
    }

    /// Waits until the process exits.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("an end").expect("a status")
    }

    /// The command line that the process list shows.
    pub fn command_line(&self) -> String {
        let process = self.child.id().expect("a running process");
        let line = fs::read(format!("/proc/{process}/cmdline")).expect("its command line");
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Stops the bridge gracefully and returns its whole log.
    pub async fn log(mut self) -> Vec<String> {
        signal(&self.child, Signal::SIGTERM);
        let mut lines = self.early;
        while let Some(line) = self.log.recv().await {
            lines.push(line);
        }
        lines.iter().map(Value::to_string).collect()
    }

    /// Stops the bridge gracefully and returns how many streams it still had.
    pub async fn stop(mut self) -> u64 {
        signal(&self.child, Signal::SIGTERM);
        let stopping = async {
            let mut connections = None;
            while let Some(line) = self.log.recv().await {
                connections = line["connections"].as_u64().or(connections);
            }
            let status = self.child.wait().await.expect("a status");
            assert!(status.success(), "{status}");
            connections.expect("it says how many streams it ends")
        };
        timeout(PATIENCE, stopping).await.expect("an end")
    }
}

pub fn signal(child: &Child, signal: Signal) {
    let id = child
        .id()
        .expect("a running process")
        .try_into()
        .expect("a process id");
    kill(Pid::from_raw(id), signal).expect("a signal");
}
