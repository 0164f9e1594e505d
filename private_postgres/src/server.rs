//! Creates the data of a cluster, and starts and stops its server.

use std::{ffi::OsString, fs, process::ExitStatus, time::Duration};

use tokio_postgres::NoTls;

use super::{
    Cluster, ClusterError, Durability, LogTail, PORT, Result, SUPERUSER, Shutdown, TICK, cannot,
    home::{Home, remove},
    poll, postmaster,
    supervisor::Supervised,
};

const MAKE_LIMIT: Duration = Duration::from_secs(120);
/// Long, because after a crash the server first replays its log.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it receives the next, stronger signal.
const STOP_LIMIT: Duration = Duration::from_secs(10);

impl Cluster {
    /// Creates the data of a new cluster.
    pub(super) async fn create_data(&mut self) -> Result<()> {
        let mut options = vec!["-U", SUPERUSER, "--encoding=UTF8", "--locale=C"];
        options.extend(["--auth-local=trust", "--auth-host=reject"]);
        if self.durability == Durability::Thrown {
            options.push("--no-sync");
        }
        self.make_data("initdb", &options).await
    }

    /// Copies the data of a running server so that this server follows it as a standby.
    pub(super) async fn copy_data(&mut self, primary: &Home) -> Result<()> {
        let port = PORT.to_string();
        let mut options = vec!["-h", &primary.sockets, "-p", &port, "-U", SUPERUSER];
        options.extend(["--no-password", "--checkpoint=fast", "--no-sync"]);
        options.push("--write-recovery-conf");
        self.make_data("pg_basebackup", &options).await
    }

    /// Runs a program that creates data. It writes beside the final location and the
    /// result is then renamed, so that incomplete data is never used.
    async fn make_data(&mut self, program: &'static str, options: &[&str]) -> Result<()> {
        let data = self.data();
        let running = self.home.claim_running(&data).await?;
        let unfinished = data.with_extension("new");
        remove(&unfinished)?;

        let mut command: Vec<OsString> = vec![self.binaries.program(program).into()];
        command.extend(["-D".into(), unfinished.clone().into()]);
        command.extend(options.iter().map(OsString::from));
        let mut maker = Supervised::start(&self.home, self.durability, running, &command)?;
        let status = poll(MAKE_LIMIT, || maker.ended())
            .await?
            .ok_or_else(|| self.not_ready(program, MAKE_LIMIT))?;
        if !status.success() {
            return Err(self.ended(program, status));
        }
        fs::rename(&unfinished, &data).map_err(cannot("rename", &unfinished))
    }

    /// Starts `postgres` and waits until it accepts connections.
    pub(super) async fn start_server(&mut self) -> Result<()> {
        let data = self.data();
        let running = self.home.claim_running(&data).await?;
        self.home.renew_sockets()?;
        postmaster::forget_dead(&data)?;

        let port = PORT.to_string();
        // No network, unless the settings ask for one.
        let first = [("listen_addresses", "")];
        let fixed = [
            ("unix_socket_directories", self.home.sockets.as_str()),
            ("port", &port),
        ];
        let chosen = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let mut command: Vec<OsString> = vec![self.binaries.program("postgres").into()];
        command.extend(["-D".into(), data.into()]);
        for (name, value) in first.into_iter().chain(chosen).chain(fixed) {
            command.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        let mut server = Supervised::start(&self.home, self.durability, running, &command)?;
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
    pub(super) async fn stop_server(&mut self, shutdown: Shutdown) -> Result<()> {
        for shutdown in [shutdown, Shutdown::Immediate] {
            let Some(server) = &mut self.server else {
                break;
            };
            server.order(shutdown);
            if poll(STOP_LIMIT, || server.ended()).await?.is_some() {
                self.server = None;
            }
        }
        // If the server's first process or its supervisor was killed, the other processes
        // end slightly later.
        self.home.claim_running(&self.data()).await.map(drop)
    }

    fn ended(&self, program: &'static str, status: ExitStatus) -> ClusterError {
        ClusterError::Ended {
            program,
            status,
            log: LogTail::read(&self.home.log()),
        }
    }

    fn not_ready(&self, program: &'static str, limit: Duration) -> ClusterError {
        ClusterError::NotReady {
            program,
            limit,
            log: LogTail::read(&self.home.log()),
        }
    }
}
