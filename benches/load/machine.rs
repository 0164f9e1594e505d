//! The machine that the figures were taken on, and its load.

use std::{
    env,
    fmt::{self, Display, Formatter},
    fs::{self, File},
    io::{self, Write},
    process::Command,
    thread,
    time::{Instant, SystemTime},
};

use serde::Serialize;

/// If a larger share of the processors is busy when a run begins, its figures are marked
/// as noisy.
const QUIET_LOAD: f64 = 0.25;

/// How many times a page is written and synced, to measure what a commit waits for.
const SYNCS: usize = 64;

/// A page of PostgreSQL's log.
const PAGE: [u8; 8192] = [0; 8192];

/// Whether anything else was running during the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// Almost nothing else.
    Quiet,
    /// Something else: only ratios within the run are meaningful.
    Noisy,
}

/// Everything needed to compare these figures with those of other machines.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
    system: String,
    kernel: String,
    /// The median time to write a page and sync it to disk.
    disk_sync_milliseconds: f64,
    postgres: String,
    tidings: String,
    /// The commit of the source, with a `+` if it has uncommitted changes.
    commit: String,
    date: String,
    /// Over the last minute, when the run began.
    load_average: f64,
    noise: Noise,
}

impl Machine {
    /// Inspects the machine. `postgres` is the version that the server reports.
    ///
    /// Takes as long as some dozen writes to the disk.
    pub fn look(postgres: &str) -> io::Result<Self> {
        let cores = thread::available_parallelism()?.get();
        let load_average = load_average().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "no machine has that many cores")]
        let busy = load_average / cores as f64;
        Ok(Self {
            processor: processor(),
            cores,
            memory_bytes: memory().unwrap_or_default(),
            system: system(),
            kernel: trimmed("/proc/sys/kernel/osrelease"),
            disk_sync_milliseconds: disk_sync()?,
            postgres: postgres.to_owned(),
            tidings: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            load_average,
            noise: match busy {
                ..=QUIET_LOAD => Noise::Quiet,
                _ => Noise::Noisy,
            },
        })
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let gibibytes = self.memory_bytes.div_ceil(1 << 30);
        writeln!(
            f,
            "{} cores of {}, {gibibytes} GiB; {}, Linux {}; a page is synced to disk in {:.2} ms",
            self.cores, self.processor, self.system, self.kernel, self.disk_sync_milliseconds
        )?;
        write!(
            f,
            "Tidings {} ({}), PostgreSQL {}; {}; load average at the start {:.2}",
            self.tidings, self.commit, self.postgres, self.date, self.load_average
        )?;
        match self.noise {
            Noise::Quiet => Ok(()),
            Noise::Noisy => f.write_str(": noisy, only ratios are meaningful"),
        }
    }
}

fn trimmed(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// The rest of the first line that begins with this name.
fn after(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.trim_start_matches([' ', '\t', ':', '=']).to_owned())
}

fn processor() -> String {
    let name = after("/proc/cpuinfo", "model name");
    let name = name.unwrap_or_else(|| env::consts::ARCH.to_owned());
    let flags = after("/proc/cpuinfo", "flags").unwrap_or_default();
    match flags.split(' ').any(|flag| flag == "hypervisor") {
        true => format!("{name} (virtual)"),
        false => name,
    }
}

fn memory() -> Option<u64> {
    let total = after("/proc/meminfo", "MemTotal")?;
    let kibibytes: u64 = total.strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn system() -> String {
    let name = after("/etc/os-release", "PRETTY_NAME").unwrap_or_default();
    match name.trim_matches('"') {
        "" => env::consts::OS.to_owned(),
        name => name.to_owned(),
    }
}

fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// Measured where temporary clusters are stored, since that is the disk they wait for.
fn disk_sync() -> io::Result<f64> {
    let path = env::temp_dir().join(format!("tidings-disk-{}", std::process::id()));
    let times = synced_writes(&path);
    fs::remove_file(&path)?;
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    Ok(times.get(SYNCS / 2).copied().unwrap_or_default())
}

fn synced_writes(path: &std::path::Path) -> io::Result<Vec<f64>> {
    let mut file = File::create(path)?;
    let one = |_| {
        let start = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    };
    (0..SYNCS).map(one).collect()
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-C", env!("CARGO_MANIFEST_DIR")])
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--", "src", "sql", "migrations"]).as_deref() {
        Some("") => commit,
        _ => commit + "+",
    }
}
