//! A real NATS server.

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{PATIENCE, dev::DataFolder, ports::free_address};

/// The program of the newest version.
const NEWEST: &str = "NATS_SERVER";

/// The program of the oldest version that is supported.
const OLDEST: &str = "OLDEST_NATS_SERVER";

/// A running server. Dropping it kills it.
pub struct NatsServer {
    program: PathBuf,
    address: SocketAddr,
    config: PathBuf,
    process: Option<Child>,
    _folder: DataFolder,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::start_with(|_| String::new())
    }

    /// Starts a server with this configuration. The function gets a folder for its files.
    pub fn start_with(config: impl FnOnce(&Path) -> String) -> Self {
        Self::start_program(NEWEST, config)
    }

    pub fn start_oldest(config: impl FnOnce(&Path) -> String) -> Self {
        // Elsewhere than on Debian, there is only one.
        let which = if env::var_os(OLDEST).is_some() {
            OLDEST
        } else {
            NEWEST
        };
        Self::start_program(which, config)
    }

    fn start_program(which: &str, config: impl FnOnce(&Path) -> String) -> Self {
        let program = env::var_os(which).unwrap_or_else(|| "nats-server".into());
        let folder = DataFolder::new();
        fs::create_dir(folder.path()).expect("a folder");
        let text = config(folder.path());
        let config = folder.path().join("nats.conf");
        fs::write(&config, text).expect("a configuration");
        let mut server = Self {
            program: program.into(),
            address: free_address(),
            config,
            process: None,
            _folder: folder,
        };
        server.restart();
        server
    }

    /// Starts it again, at the same address.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(&self.program);
        command
            .args([
                "--addr",
                "127.0.0.1",
                "--port",
                &self.address.port().to_string(),
            ])
            .arg("--config")
            .arg(&self.config)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.process = Some(command.spawn().expect("nats-server"));
        let begin = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(begin.elapsed() < PATIENCE, "nats-server doesn't listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Stops it without closing its connections.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        let pid = Pid::from_raw(process.id().cast_signed());
        kill(pid, signal).expect("a signal");
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
