//! Runs PostgreSQL programs so that they never outlive this process.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use super::{Durability, Result, Shutdown, cannot, home::Home};

const SCRIPT: &str = include_str!("supervisor.sh");
const SHELL: &str = "/bin/sh";

/// A command that runs under the supervisor script. Dropping this stops the command.
#[derive(Debug)]
pub(super) struct Supervised {
    supervisor: Child,
    /// The pipe to the supervisor. When it closes, the supervisor stops the command.
    orders: ChildStdin,
}

impl Supervised {
    /// Starts a command as the user of `home`, detached from the terminal: Ctrl-C reaches
    /// only this process, which then stops the server in order. The command holds
    /// `running`, and its output is appended to the log.
    pub(super) fn start(
        home: &Home,
        durability: Durability,
        running: File,
        command: &[OsString],
    ) -> Result<Self> {
        let folder_to_remove = match durability {
            Durability::Kept => OsStr::new(""),
            Durability::Thrown => home.folder.as_os_str(),
        };
        let mut supervisor = Command::new(SHELL);
        supervisor
            .args(["-c", SCRIPT, "tidings-postgres"])
            .arg(folder_to_remove)
            .args(command)
            // Our own working directory may be inaccessible to that user, or be removed
            // later.
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(running)
            .stderr(home.open_log()?);
        if let Some(account) = &home.account {
            supervisor.uid(account.uid).gid(account.gid);
        }
        let mut supervisor = supervisor
            .spawn()
            .map_err(cannot("run", Path::new(SHELL)))?;
        let orders = supervisor
            .stdin
            .take()
            .expect("its standard input is a pipe");
        Ok(Self { supervisor, orders })
    }

    /// The command's exit status, if it has ended.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.supervisor
            .try_wait()
            .map_err(cannot("wait for", Path::new(SHELL)))
    }

    /// Signals a server to stop.
    pub(super) fn order(&mut self, shutdown: Shutdown) {
        let signal = match shutdown {
            Shutdown::Fast => "INT",
            Shutdown::Immediate => "QUIT",
        };
        // This only fails if the supervisor no longer reads, because everything has
        // ended.
        let _ = writeln!(self.orders, "{signal}");
    }
}
