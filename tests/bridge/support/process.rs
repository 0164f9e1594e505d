//! `tidings serve` as a process of its own.

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

/// A bridge of its own process, and where it listens.
pub async fn serve(database: &Database, more: &[&str]) -> (Child, SocketAddr) {
    let served = Served::start(database, more).await;
    (served.child, served.address)
}

/// Another program to test, such as an earlier release: to see that the tests of
/// attacks fail with it.
pub const OTHER_PROGRAM: &str = "TIDINGS_TEST_PROGRAM";

/// The program that is tested.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tidings");

/// Not waited for.
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
        // Not as an argument: an earlier release doesn't know it.
        .env("TIDINGS_SETTLE", "0s")
        .args(with_room(more))
        .env("DATABASE_URL", database.connection_string())
        .env("TIDINGS_JWT_SECRET", SECRET)
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // What is in a file is not given as it is too.
    for name in environment
        .iter()
        .filter_map(|(name, _)| name.strip_suffix("_FILE"))
    {
        command.env_remove(name);
    }
    command.spawn().expect("the binary")
}

/// Starts a program with two sockets as a service manager passes them: open as files 3 and 4, and announced to
/// this very process. They come as its input and output.
const PASSES_SOCKETS: &str = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ exec \"$0\" \"$@\"";

/// With sockets that a service manager has opened, each with its name. Not waited for.
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

/// What `tidings serve` said when it refused to start.
pub async fn refusal(database: &Database, more: &[&str]) -> String {
    let ended = timeout(PATIENCE, spawn(database, more, &[]).wait_with_output()).await;
    let output = ended.expect("it refuses").expect("its log");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A bridge of its own process, of which a test sees what its operator sees.
/// Dropping it kills it.
pub struct Served {
    child: Child,
    address: SocketAddr,
    admin_address: SocketAddr,
    /// What it logged before it said where it listens, and since.
    said: std::vec::IntoIter<Value>,
    log: mpsc::UnboundedReceiver<Value>,
    /// What it said before it listened.
    early: Vec<Value>,
}

/// What a process has taken from the system.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// The memory that it occupies, and the most that it ever did.
    pub resident_bytes: usize,
    pub peak_bytes: usize,
    pub threads: usize,
    pub files: usize,
}

impl Served {
    pub async fn start(database: &Database, more: &[&str]) -> Self {
        Self::start_in(database, more, &[]).await
    }

    /// With more in its environment.
    pub async fn start_in(
        database: &Database,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::of(spawn(database, more, environment)).await
    }

    /// A bridge of another program, such as an earlier release.
    pub async fn start_program(program: &str, database: &Database, more: &[&str]) -> Self {
        Self::of(spawn_program(program, database, more, &[])).await
    }

    /// With sockets that a service manager has opened, each with its name.
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
                // Nobody may listen any more; the pipe must not fill up.
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

    /// A stream of `user`: of one who is new, or who was here before.
    pub async fn connect(&self, user: &str, last_event_id: Option<&str>) -> EventSource {
        let bearer = format!("Bearer {}", token(user));
        let mut headers = vec![("Authorization", bearer.as_str())];
        headers.extend(last_event_id.map(|id| ("Last-Event-ID", id)));
        EventSource::open(self.address, "/stream", &headers).await
    }

    /// A stream of `user` that has got its backlog, and is live.
    pub async fn connect_live(&self, user: &str) -> EventSource {
        let mut source = self.connect(user, None).await;
        until(&mut source, "tidings.caught-up").await;
        source
    }

    /// Waits until the metric of this name, with its labels, is as wanted, asking
    /// all the while.
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

    /// How many were turned away for this reason.
    pub async fn refused(&self, reason: &str) -> u64 {
        let metrics = get(self.admin_address, "/metrics", &[]).await;
        refused(&metrics.expect("an answer").text().await, reason)
    }

    pub async fn ready(&self) -> Response {
        get(self.admin_address, "/health/ready", &[])
            .await
            .expect("an answer")
    }

    /// Waits until readiness answers with this status.
    pub async fn until_ready_is(&self, status: u16) {
        self.until_readiness(format_args!("{status}"), |now, _| now == status)
            .await;
    }

    /// Waits until it is not ready for a reason that contains `text`.
    pub async fn until_deaf(&self, text: &str) {
        self.until_readiness(format_args!("not ready: {text}"), |status, body| {
            let body: Value = serde_json::from_str(body).expect("JSON");
            status == 503 && body["reason"].as_str().is_some_and(|r| r.contains(text))
        })
        .await;
    }

    /// Waits until it tells that marks can't be written, and why.
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

    /// Waits for a line of the log, of this level and with this text, past all
    /// others, and returns it.
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

    /// Waits until its vitals are as wanted, looking all the while.
    pub async fn until_vitals(&self, wanted: impl Fn(Stats) -> bool, as_what: impl Debug) {
        let looking = async {
            while !wanted(self.vitals()) {
                tokio::task::yield_now().await;
            }
        };
        let outcome = timeout(PATIENCE, looking).await;
        outcome.unwrap_or_else(|_| panic!("{:?}, never {as_what:?}", self.vitals()));
    }

    /// Sends it a signal.
    pub fn signal(&self, wanted: Signal) {
        signal(&self.child, wanted);
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.expect("an end").expect("a status")
    }

    /// What stands in the list of processes.
    pub fn command_line(&self) -> String {
        let process = self.child.id().expect("a running process");
        let line = fs::read(format!("/proc/{process}/cmdline")).expect("its command line");
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Stops it in order, and returns its log from the first line to the last.
    pub async fn log(mut self) -> Vec<String> {
        signal(&self.child, Signal::SIGTERM);
        let mut lines = self.early;
        while let Some(line) = self.log.recv().await {
            lines.push(line);
        }
        lines.iter().map(Value::to_string).collect()
    }

    /// Stops it in order, and returns how many streams it still had.
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

/// Sends it a signal.
pub fn signal(child: &Child, signal: Signal) {
    let id = child
        .id()
        .expect("a running process")
        .try_into()
        .expect("a process id");
    kill(Pid::from_raw(id), signal).expect("a signal");
}
