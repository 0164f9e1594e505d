//! Programs of PostgreSQL, run so that they never outlive this process.

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

/// A command under the supervisor script. Dropping this ends the command.
#[derive(Debug)]
pub(super) struct Supervised {
    supervisor: Child,
    /// The pipe whose end is the command's end.
    orders: ChildStdin,
}

impl Supervised {
    /// Starts a command as the user of `home`, out of reach of the terminal:
    /// Ctrl-C is for us, who stop the server in order. It holds `running`, and
    /// what it prints is appended to the log.
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
            // Ours may be closed to that user, or be removed meanwhile.
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

    /// Whether it has ended, and how.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.supervisor
            .try_wait()
            .map_err(cannot("wait for", Path::new(SHELL)))
    }

    /// Tells a server to stop.
    pub(super) fn order(&mut self, shutdown: Shutdown) {
        let signal = match shutdown {
            Shutdown::Fast => "INT",
            Shutdown::Immediate => "QUIT",
        };
        // It fails only when nobody reads any more, because all has ended.
        let _ = writeln!(self.orders, "{signal}");
    }
}
