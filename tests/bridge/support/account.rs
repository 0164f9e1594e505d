//! The result of a fault: which rows were lost, which were repeated, and how long recovery took.
//! The table in `docs/reliability.md` is generated from these results.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use private_postgres::PostgresBinaries;
use serde::{Deserialize, Serialize};

/// What a fault caused, over all rounds of its test.
#[derive(Debug, Serialize, Deserialize)]
pub struct Account {
    fault: String,
    /// Why a row may be repeated; empty if none may.
    repeats_allowed: String,
    rounds: usize,
    rows: usize,
    lost: usize,
    repeated: usize,
    recovery_ms: Vec<u64>,
}

impl Account {
    /// For a fault after which no row may be repeated.
    pub fn without_repeats(fault: &str) -> Self {
        Self::open(fault, "")
    }

    /// For a fault after which rows may be repeated, and the reason.
    pub fn with_repeats(fault: &str, why: &str) -> Self {
        Self::open(fault, why)
    }

    fn open(fault: &str, why: &str) -> Self {
        Self {
            fault: fault.to_owned(),
            repeats_allowed: why.to_owned(),
            rounds: 0,
            rows: 0,
            lost: 0,
            repeated: 0,
            recovery_ms: Vec::new(),
        }
    }

    /// Records the rows that one client was owed and those that it received.
    pub fn client(&mut self, owed: impl IntoIterator<Item = i64>, got: &[i64]) {
        let owed: BTreeSet<i64> = owed.into_iter().collect();
        let distinct: BTreeSet<i64> = got.iter().copied().collect();
        let lost: Vec<_> = owed.difference(&distinct).collect();
        assert!(lost.is_empty(), "{}: lost {lost:?}", self.fault);
        let strange: Vec<_> = distinct.difference(&owed).collect();
        assert!(strange.is_empty(), "{}: not owed {strange:?}", self.fault);
        let repeated = got.len() - distinct.len();
        assert!(
            repeated == 0 || !self.repeats_allowed.is_empty(),
            "{}: {repeated} rows came twice: {got:?}",
            self.fault
        );
        self.rows += owed.len();
        self.lost += lost.len();
        self.repeated += repeated;
    }

    /// Ends a round with recovery. `recovery` is the time until rows flowed again after the fault
    /// was removed, or after it began if it persists.
    pub fn recovered_after(&mut self, recovery: Duration) {
        self.rounds += 1;
        self.recovery_ms.push(recovery.as_millis() as u64);
    }

    /// Ends a round without recovery.
    pub fn round(&mut self) {
        self.rounds += 1;
    }

    /// Writes the result to the table.
    pub fn close(self) {
        static TABLE: Mutex<()> = Mutex::new(());
        let _one_at_a_time = TABLE.lock();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reliability");
        fs::create_dir_all(&folder).expect("a folder");
        let name: String = self
            .fault
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let json = serde_json::to_string(&self).expect("JSON");
        fs::write(folder.join(name).with_extension("json"), json).expect("an account");
        fs::write(folder.join("table.md"), table(&folder)).expect("a table");
    }

    fn line(&self) -> String {
        let repeated = match (self.repeated, self.repeats_allowed.as_str()) {
            (count, "") => count.to_string(),
            (count, why) => format!("{count} ({why})"),
        };
        let mut recovery = self.recovery_ms.clone();
        recovery.sort_unstable();
        let seconds = |ms: &u64| format!("{:.2} s", *ms as f64 / 1000.0);
        let median = recovery.get(recovery.len() / 2).map(seconds);
        let worst = recovery.last().map(seconds);
        format!(
            "| {} | {} | {} | {} | {repeated} | {} | {} |",
            self.fault,
            self.rounds,
            self.rows,
            self.lost,
            median.unwrap_or_default(),
            worst.unwrap_or_default()
        )
    }
}

fn table(folder: &Path) -> String {
    let accounts = fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<PathBuf> = accounts
        .map(|entry| entry.expect("a file").path())
        .collect();
    paths.sort();
    let lines = paths
        .iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| {
            let json = fs::read_to_string(path).expect("an account");
            let account: Account = serde_json::from_str(&json).expect("an account");
            account.line() + "\n"
        });
    let server = postgres_version();
    let head = "| fault | rounds | rows | lost | repeated | recovered: median | worst |\n\
                | --- | ---: | ---: | ---: | --- | ---: | ---: |\n";
    format!("With {server}.\n\n{head}{}", lines.collect::<String>())
}

/// The version that the server itself reports.
fn postgres_version() -> String {
    let binaries = PostgresBinaries::find().expect("a PostgreSQL");
    let server = binaries.beside("postgres").expect("its server");
    let said = Command::new(server).arg("--version").output();
    let said = String::from_utf8(said.expect("a version").stdout).expect("text");
    said.trim().replace("postgres (PostgreSQL)", "PostgreSQL")
}
