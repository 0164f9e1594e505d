//! `tidings prune`: removes old and expired rows, once.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::postgres::{
    prune_failure::{PruneFailure, rows},
    retention::{Left, Prunable, Prune, PruneBatch, PruneError, PrunePace},
};

/// Works for a fifth of the time, to leave the processor, the disk and the WAL to others
/// in between: some 40,000 rows per second on a small machine.
const PACE: PrunePace = PrunePace { rest: 4 };

/// How often to check whether another session has finished its batch, and for how long.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const BUSY_LIMIT: Duration = Duration::from_secs(60);

/// How often the progress line is updated.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// How the removal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PruneOutcome {
    /// All old and expired rows are gone, except those that can't be removed.
    Done {
        removed: u64,
        failures: Vec<PruneFailure>,
    },
    /// It was stopped after this many rows; there may be more.
    Stopped(u64),
}

/// Removes rows, batch by batch, until none is old enough or `stop` resolves, and updates
/// `progress` after each batch.
///
/// # Errors
///
/// [`PruneError`]. Rows that were removed before stay removed.
pub async fn run(
    mut prune: Prune,
    stop: impl Future<Output = ()>,
    mut progress: ProgressLine,
) -> Result<PruneOutcome, PruneError> {
    tokio::pin!(stop);
    let mut removed = 0;
    let mut waiting_since = None;
    loop {
        let begin = Instant::now();
        let rest = match prune.batch().await? {
            PruneBatch::Removed { rows, left } => {
                waiting_since = None;
                removed += rows;
                match left {
                    Left::Nothing => {
                        progress.end();
                        let failures = prune.failures().await?;
                        return Ok(PruneOutcome::Done { removed, failures });
                    }
                    Left::Time(time) => progress.show(removed, time),
                }
                PACE.after(begin)
            }
            PruneBatch::Busy => {
                let since = *waiting_since.get_or_insert(begin);
                if since.elapsed() > BUSY_LIMIT {
                    progress.end();
                    return Err(PruneError::Busy(BUSY_LIMIT));
                }
                BUSY_PAUSE
            }
        };
        tokio::select! {
            () = &mut stop => {
                progress.end();
                return Ok(PruneOutcome::Stopped(removed));
            }
            () = sleep(rest) => {}
        }
    }
}

/// Shows the progress on one line of a terminal; elsewhere nothing.
#[derive(Debug)]
pub struct ProgressLine {
    terminal: Terminal,
    begin: Instant,
    shown: Option<Instant>,
    /// The time span that was left at the beginning.
    whole: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terminal {
    Attached,
    Absent,
}

impl ProgressLine {
    /// Shows it on standard error, if that is a terminal.
    pub fn on_stderr() -> Self {
        Self {
            terminal: match io::stderr().is_terminal() {
                true => Terminal::Attached,
                false => Terminal::Absent,
            },
            begin: Instant::now(),
            shown: None,
            whole: None,
        }
    }

    fn show(&mut self, removed: u64, left: Duration) {
        let whole = *self.whole.get_or_insert(left);
        let is_due = self.shown.is_none_or(|at| at.elapsed() >= SHOWN_EVERY);
        if self.terminal == Terminal::Absent || !is_due {
            return;
        }
        self.shown = Some(Instant::now());
        let part = 1.0 - left.as_secs_f64() / whole.as_secs_f64().max(1.0);
        let rate = removed as f64 / self.begin.elapsed().as_secs_f64().max(0.001);
        // If the terminal is gone, nothing is lost.
        let _ = write!(
            io::stderr(),
            "\r{} removed, {rate:.0} per second, {:.0} % checked\x1b[K",
            rows(removed),
            100.0 * part.clamp(0.0, 1.0)
        );
    }

    /// Erases the line.
    fn end(&self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl fmt::Display for Prunable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            topics,
            expired,
        } = self;
        write!(
            f,
            "{} would be removed: {sent} sent, {topics} for topics, {expired} expired",
            rows(sent + topics + expired)
        )
    }
}
