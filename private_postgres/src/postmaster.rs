//! Finds a server's first process. Its id is in `postmaster.pid` in the data folder, and
//! stays there if the process is killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{sys::signal, unistd::Pid};

use super::{Result, cannot};

/// The process id of the running server of `data`, if there is one.
pub(super) fn find(data: &Path) -> Option<Pid> {
    let file = fs::read_to_string(pid_file(data)).ok()?;
    let pid = file.lines().next()?.trim().parse().ok()?;
    // Signalling zero or a negative number would signal a process group.
    let pid = (pid > 0).then(|| Pid::from_raw(pid))?;
    serves(pid, data).then_some(pid)
}

/// Removes the process id of a dead server. Another process may have it by now, or a
/// zombie that no process waits for; both happen easily in containers. The server would
/// take either for its rival and not start.
pub(super) fn forget_dead(data: &Path) -> Result<()> {
    if find(data).is_some() {
        return Ok(());
    }
    let file = pid_file(data);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(cannot("remove", &file)(error))
        }
        _ => Ok(()),
    }
}

fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

/// Whether a process is the server of `data`, which is then its working directory.
/// Without `/proc`, as on macOS, any live process counts.
fn serves(pid: Pid, data: &Path) -> bool {
    let working_folder = |process: &str| fs::read_link(format!("/proc/{process}/cwd"));
    match working_folder("self") {
        Ok(_) => working_folder(&pid.to_string()).is_ok_and(|folder| folder == data),
        Err(_) => signal::kill(pid, None).is_ok(),
    }
}
