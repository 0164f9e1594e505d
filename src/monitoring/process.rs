//! Resource usage of this process, as Linux reports it in `/proc`. On other systems it is
//! not known.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// The unit of times in `/proc`: for programs it is the same on all machines.
const TICKS_A_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Process {
    /// Start time, in seconds since 1970.
    pub started: f64,
    /// CPU time used, in user and system mode.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
}

impl Process {
    /// The current usage; `None` if it is not known.
    pub fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The program's name, in parentheses, may contain anything; the third field
        // follows it.
        let (_, fields) = stat.rsplit_once(')')?;
        let seconds = |number: usize| -> Option<f64> {
            let ticks: f64 = fields.split_whitespace().nth(number - 3)?.parse().ok()?;
            Some(ticks / TICKS_A_SECOND)
        };
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
        let age = Duration::try_from_secs_f64(uptime - seconds(22)?).ok()?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).ok()? - age;
        Some(Self {
            started: started.as_secs_f64(),
            cpu_seconds: seconds(14)? + seconds(15)?,
            resident_bytes: resident_bytes()?,
        })
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// How many files are open, and how many may be. Each stream is one.
pub fn files() -> Option<(usize, u64)> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    let (most, _) = rlimit::Resource::NOFILE.get().ok()?;
    Some((open, most))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn it_knows_its_own_age_memory_and_files() {
        let process = Process::now().expect("it is told");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let age = now.expect("after 1970").as_secs_f64() - process.started;
        assert!((-1.0..3_600.0).contains(&age), "{age} s old");
        assert!(process.resident_bytes > 1 << 20, "{process:?}");
        let (open, most) = files().expect("they are counted");
        assert!(open >= 3 && open as u64 <= most, "{open} of {most}");
    }
}
