//! Logging: text for people, JSON for machines. `docs/operations/logs.md` says what
//! the levels and fields mean.

mod flood;
mod output;
mod panics;
mod recent;

use std::{
    io::{self, IsTerminal, stderr},
    sync::OnceLock,
    time::Duration,
};

use tokio::time::interval;
use tracing::warn;
use tracing_subscriber::{
    EnvFilter, Layer, filter::ParseError, fmt, layer::SubscriberExt, registry,
    util::SubscriberInitExt,
};

pub use self::recent::{Line, counted, recent};
use self::{flood::Flood, output::Output, recent::Recent};
use crate::config::{LogFormat, LogOptions};

/// To the server a stream that leaves it is a response that failed, and it would
/// say so each time ([`crate::line`]).
const DEPARTURES: &str = "actix_http::h1::dispatcher=off";

/// The migrations of earlier releases did not name the schema, so the checksums of what
/// they applied differ (`docs/decisions/0011-names-are-qualified-in-all-sql.md`).
const CHECKSUMS: &str = "refinery_core::traits::divergent=off";

/// How often it is told how many lines are missing.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How long the end of the process may wait for whoever reads the log.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// As there is one standard error, there is one of these. None until [`install`].
static OUTPUT: OnceLock<Output> = OnceLock::new();

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `TIDINGS_LOG` can't be understood.
    #[error("{0}")]
    Filter(#[from] ParseError),
    /// The system refuses a thread.
    #[error("can't start the thread that writes the log: {0}")]
    Thread(#[from] io::Error),
}

/// Installs the process-wide subscriber, which writes to standard error without
/// ever waiting for whoever reads that, and logs panics.
///
/// # Errors
///
/// [`LogError`].
pub fn install(options: &LogOptions) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(&options.log)?
        .add_directive(DEPARTURES.parse()?)
        .add_directive(CHECKSUMS.parse()?);
    let output = match OUTPUT.get() {
        Some(output) => output,
        None => {
            let output = Output::start()?;
            OUTPUT.get_or_init(|| output)
        }
    };
    let is_terminal = stderr().is_terminal();
    let mut lines = fmt::layer().with_writer(|| output.clone());
    lines.set_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()));
    let lines = match options.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Auto if is_terminal => lines.boxed(),
        LogFormat::Json | LogFormat::Auto => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    // Installing fails only where a subscriber is there already, which serves
    // as well.
    let _ = registry()
        .with(filter)
        .with(Flood)
        .with(Recent)
        .with(lines)
        .try_init();
    panics::log();
    Ok(())
}

/// Writes a line to standard error as it is, after those of the log.
pub fn say(line: &str) {
    match OUTPUT.get() {
        Some(output) => output.line(format!("{line}\n").as_bytes()),
        // Nothing runs yet that could be held up.
        None => {
            let _ = io::Write::write_all(&mut stderr(), format!("{line}\n").as_bytes());
        }
    }
}

/// Waits until the log is written, but not for long.
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.flush(FLUSH_LIMIT);
    }
}

/// How many lines were dropped because nobody read standard error.
pub fn dropped() -> u64 {
    OUTPUT.get().map_or(0, Output::dropped)
}

/// Tells now and then how many lines are missing from the log, until it is dropped:
/// those that were like too many others, and those that nobody read in time.
pub async fn keep_telling_what_is_missing() {
    let (mut pace, mut told) = (interval(TELL_EVERY), 0);
    loop {
        pace.tick().await;
        tell_what_was_left_out();
        let dropped = dropped();
        // While nobody reads, this line would be dropped too.
        if dropped > told && OUTPUT.get().is_some_and(Output::has_room) {
            let count = dropped - told;
            warn!(
                count,
                "{count} lines of the log were dropped: standard error was not read as fast as \
                 they came, or was closed; look at what reads it"
            );
            told = dropped;
        }
    }
}

/// Tells how many lines were left out since the last time because they were like
/// others before them.
pub fn tell_what_was_left_out() {
    flood::tell();
}
