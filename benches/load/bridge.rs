//! The release binary as it is shipped: `tidings serve` in a process of its own.

use std::{
    env,
    io::{BufRead, BufReader, Write, stderr},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use tidings::{
    auth::jwt::{self, JwtSecret, Rules},
    domain::notification::UserId,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::{
    Result,
    clock::Moment,
    process::Process,
    sections::PATIENCE,
    server::Database,
    subject::{Live, Subject},
};

const SECRET: &str = "a secret of the benchmark, 32 bytes or more";
/// Longer than any run.
const TOKEN_SECONDS: u64 = 24 * 60 * 60;
/// There is nothing to migrate or to wait for.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// All streams come from one machine at once, which the default limits treat as an
/// attack. Everything else is the default. More streams than that would need more than
/// 20,000 open files, which many systems don't allow.
const SETTINGS: [&str; 8] = [
    "--listen=127.0.0.1:0",
    "--admin-listen=127.0.0.1:0",
    "--max-connections=15500",
    "--max-connections-per-user=100000",
    "--max-connections-per-address=100000",
    "--connection-rate=1000000",
    "--drain=0s",
    "--log-format=json",
];

/// A running bridge. Dropping it kills it.
pub struct Bridge {
    child: Child,
    address: SocketAddr,
    admin_address: SocketAddr,
}

/// The log line that contains its addresses.
#[derive(Deserialize)]
struct Started {
    address: SocketAddr,
    admin_address: SocketAddr,
}

impl Bridge {
    /// Starts a bridge, and returns when it serves.
    pub async fn start(database: &Database) -> Result<Self> {
        Self::start_with(database, &[]).await
    }

    /// The same, with additional settings.
    pub async fn start_with(database: &Database, more: &[&str]) -> Result<Self> {
        // Another program, such as an earlier release, can be measured for comparison.
        let program = env::var("TIDINGS_TEST_PROGRAM");
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_tidings").to_owned());
        let mut child = Command::new(program)
            .arg("serve")
            .args(SETTINGS)
            .args(more)
            .env_clear()
            .env("DATABASE_URL", database.url())
            .env("TIDINGS_JWT_SECRET", SECRET)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take().ok_or("no log")?;
        let (sender, started) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(|line| line.ok()) {
                if let Ok(found) = serde_json::from_str::<Started>(&line) {
                    // The receiver is gone if the bridge was too slow.
                    let _ = sender.send(found);
                } else if !line.contains("\"INFO\"") {
                    let _ = writeln!(stderr(), "{line}");
                }
            }
        });
        let waiting = tokio::task::spawn_blocking(move || started.recv_timeout(STARTS_WITHIN));
        let Ok(Started {
            address,
            admin_address,
        }) = waiting.await?
        else {
            child.kill()?;
            return Err("the bridge didn't start: its log is above".into());
        };
        Ok(Self {
            child,
            address,
            admin_address,
        })
    }

    /// How many pages it has read from the primary.
    pub async fn pages_read(&self) -> Result<u64> {
        let metrics = self.metrics().await?;
        let all = sum(&metrics, "tidings_page_seconds_count");
        Ok((all - sum(&metrics, "tidings_replica_pages_total")) as u64)
    }

    pub async fn until_replica_is_used(&self) -> Result<()> {
        let begin = Moment::now();
        while sum(&self.metrics().await?, "tidings_replica_ready") < 1.0 {
            if Moment::now().since(begin) > PATIENCE {
                return Err("the replica is not used".into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until it has this role among bridges that share what they read.
    pub async fn until_role(&self, role: &str) -> Result<()> {
        let begin = Moment::now();
        let wanted = format!("tidings_feed_role{{role=\"{role}\"}} 1");
        while !self.metrics().await?.contains(&wanted) {
            if Moment::now().since(begin) > PATIENCE {
                return Err(format!("the bridge is not {role}").into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn metrics(&self) -> Result<String> {
        let mut socket = TcpStream::connect(self.admin_address).await?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut metrics = String::new();
        socket.read_to_string(&mut metrics).await?;
        Ok(metrics)
    }

    /// How to connect to it and write to its table.
    pub fn subject(&self) -> Result<Subject> {
        let secret: JwtSecret = SECRET.parse()?;
        let rules = Rules::default();
        let request = move |user: &str, last_event_id: Option<&str>| {
            let user = UserId::parse(user).expect("a name of the benchmark's own");
            let token = jwt::sign(&secret, &rules, &user, TOKEN_SECONDS)
                .expect("a secret signs whatever there is");
            let last =
                last_event_id.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
            format!(
                "GET /stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\
                 Authorization: Bearer {token}\r\n{last}\r\n"
            )
        };
        Ok(Subject {
            address: self.address,
            request: Box::new(request),
            live: Live::Event("tidings.caught-up"),
        })
    }

    pub fn process(&self) -> Result<Process> {
        Ok(Process::with_id(self.child.id().try_into()?))
    }

    /// Sends SIGTERM and waits until it has exited.
    pub async fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.process()?.id()), Signal::SIGTERM)?;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        match status.success() {
            true => Ok(()),
            false => Err(format!("the bridge ended with {status}").into()),
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of a metric over its labels.
fn sum(metrics: &str, name: &str) -> f64 {
    let of = |line: &&str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '{']))
    };
    let values = metrics.lines().filter(of);
    values
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}
