//! Reads the end of PostgreSQL's log, for error messages.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

const LINES: usize = 20;

/// The end of a log file: at most twenty lines.
#[derive(Debug)]
pub struct LogTail {
    log: PathBuf,
    lines: String,
}

impl LogTail {
    /// Reads the whole file, which is emptied at each start of a cluster.
    pub(super) fn read(log: &Path) -> Self {
        let lines = match fs::read(log) {
            Ok(text) => last_lines(&String::from_utf8_lossy(&text)),
            Err(error) => format!("({error})"),
        };
        Self {
            log: log.to_owned(),
            lines,
        }
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, lines } = self;
        write!(f, "the last lines of {} are:\n{lines}", log.display())
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_lines() {
        let text: String = (1..=LINES + 2).map(|line| format!("{line}\n")).collect();
        let kept = last_lines(&text);
        assert!(kept.starts_with("3\n4\n"));
        assert_eq!(kept.lines().count(), LINES);
        assert_eq!(last_lines(""), "");
    }
}
