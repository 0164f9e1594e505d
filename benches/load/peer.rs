//! The alternatives to Tidings, each set up as its own documentation recommends
//! (`benches/peers`), started by `scripts/bench-peers`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio_postgres::config::Host;

use crate::{
    Result,
    server::Database,
    subject::{Live, Subject},
};

/// The table that they listen to, and its trigger.
pub const TABLE: &str = include_str!("../peers/table.sql");

/// How long a peer may take to end before it is killed.
const FAREWELL: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// nginx with nchan, and a forwarder that LISTENs.
    Nchan,
    /// django-eventstream with its database storage.
    EventStream,
    /// `pg` and `better-sse`.
    Node,
}

impl Peer {
    pub const ALL: [Self; 3] = [Self::Nchan, Self::EventStream, Self::Node];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nchan => "nchan, with a forwarder",
            Self::EventStream => "django-eventstream",
            Self::Node => "Node, pg and better-sse",
        }
    }

    /// Its name in `scripts/bench-peers`.
    fn key(self) -> &'static str {
        match self {
            Self::Nchan => "nchan",
            Self::EventStream => "eventstream",
            Self::Node => "node",
        }
    }

    /// The path of this user's stream.
    fn target(self, user: &str) -> String {
        match self {
            Self::Nchan => format!("/sub?id={user}"),
            Self::EventStream => format!("/events/{user}/"),
            Self::Node => format!("/?user={user}"),
        }
    }

    /// Fetches what all of them need.
    pub fn install() -> Result<()> {
        match script(&["install"]).status()?.success() {
            true => Ok(()),
            false => Err("the peers can't be installed: the reason is above".into()),
        }
    }

    /// Starts it on this database, which already has the table.
    pub fn start(self, database: &Database) -> Result<RunningPeer> {
        let config: tokio_postgres::Config = database.url().parse()?;
        let [Host::Unix(folder)] = config.get_hosts() else {
            return Err("the benchmark's PostgreSQL is behind a Unix socket".into());
        };
        let port = config.get_ports().first().ok_or("no port")?.to_string();
        // It can't report which port it was given, so it gets one that was free a moment
        // ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let process = script(&["start", self.key(), &address.port().to_string()])
            .env("PGHOST", folder)
            .env("PGPORT", port)
            .env("PGUSER", config.get_user().ok_or("no user")?)
            .env("PGDATABASE", config.get_dbname().ok_or("no database")?)
            .process_group(0)
            // It ends when this is closed: when this program ends, however that happens.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(RunningPeer {
            peer: self,
            process,
            address,
        })
    }
}

fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bench-peers"));
    command.args(arguments);
    command
}

/// A running peer with all its processes. Dropping it ends them.
pub struct RunningPeer {
    peer: Peer,
    process: Child,
    address: SocketAddr,
}

impl RunningPeer {
    /// How to open a stream. None of the peers authenticates users.
    pub fn subject(&self) -> Subject {
        let peer = self.peer;
        let request = move |user: &str, last_event_id: Option<&str>| {
            let target = peer.target(user);
            let last =
                last_event_id.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
            format!(
                "GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{last}\r\n"
            )
        };
        Subject {
            address: self.address,
            request: Box::new(request),
            live: Live::Head,
        }
    }

    /// The memory of all its processes, in bytes. Shared memory is counted once.
    pub fn memory(&self) -> Result<u64> {
        let mut kilobytes = 0;
        for pid in self.processes()? {
            // A process that has ended in the meantime has none.
            let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            let share = rollup
                .lines()
                .find_map(|line| line.strip_prefix("Pss:")?.strip_suffix("kB"));
            kilobytes += share.map_or(Ok(0), |share| share.trim().parse::<u64>())?;
        }
        Ok(kilobytes << 10)
    }

    /// All processes of its group.
    fn processes(&self) -> Result<Vec<i32>> {
        let group = self.group()?.to_string();
        let mut members = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
                continue;
            };
            // The fields after the name, which is in parentheses and may contain
            // anything: state, parent, group.
            let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
            if fields.split_whitespace().nth(2) == Some(&group) {
                members.push(pid);
            }
        }
        Ok(members)
    }

    fn group(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.process.id())?))
    }

    /// Ends it in order and waits for that.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let group = self.group()?;
        // Processes that have already ended can't be signalled.
        let _ = killpg(group, Signal::SIGTERM);
        let told = Instant::now();
        // A group exists until its last process has ended and been reaped.
        while killpg(group, None).is_ok() {
            thread::sleep(TICK);
            self.process.try_wait()?;
            if told.elapsed() > FAREWELL {
                let _ = killpg(group, Signal::SIGKILL);
            }
        }
        Ok(())
    }
}

impl Drop for RunningPeer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.end();
    }
}
