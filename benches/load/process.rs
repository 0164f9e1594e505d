//! A process's memory and processor time, as the operating system reports them.

use std::{fs, time::Duration};

use crate::Result;

/// Linux reports processor time in hundredths of a second, at least to user programs.
const TICK: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
pub struct Process {
    pid: i32,
}

impl Process {
    pub fn with_id(pid: i32) -> Self {
        Self { pid }
    }

    /// The load generator's own process.
    pub fn own() -> Result<Self> {
        Ok(Self {
            pid: i32::try_from(std::process::id())?,
        })
    }

    pub fn id(self) -> i32 {
        self.pid
    }

    /// Its memory in use, in bytes.
    pub fn memory(self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kilobytes = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.strip_suffix("kB"))
            .ok_or("a process without memory")?;
        Ok(kilobytes.trim().parse::<u64>()? << 10)
    }

    /// The number of its open files and sockets.
    pub fn files(self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }

    /// The processor time that it has used, on all cores.
    pub fn cpu(self) -> Result<Duration> {
        let [user, system, ..] = self.times()?;
        Ok(TICK * (user + system))
    }

    /// The same, including its children: running ones and those that it has reaped.
    pub fn family_cpu(self) -> Result<Duration> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid))?;
        let mut ticks: u32 = self.times()?.iter().sum();
        for child in children.split_whitespace() {
            let child = Self::with_id(child.parse()?);
            // A child that has ended in the meantime is counted by its parent.
            if let Ok(times) = child.times() {
                ticks += times.iter().sum::<u32>();
            }
        }
        Ok(TICK * ticks)
    }

    /// User and kernel ticks, its own and those of the children that it has reaped.
    fn times(self) -> Result<[u32; 4]> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The name is in parentheses and may contain anything.
        let (_, rest) = stat.rsplit_once(')').ok_or("no name")?;
        let mut fields = rest.split_whitespace().skip(11);
        let mut next = || -> Result<u32> { Ok(fields.next().ok_or("no times")?.parse()?) };
        Ok([next()?, next()?, next()?, next()?])
    }
}
