//! Logging: text for people, JSON for machines. `docs/operations/logs.md` says what
//! the levels and fields mean.

mod filter;
mod output;
mod panics;
mod rate_limit;
mod recent;

use std::{
    fmt::Debug,
    io::{self, IsTerminal, stderr},
    sync::OnceLock,
    time::Duration,
};

use tokio::time::interval;
use tracing::{field::Field, warn};
use tracing_subscriber::{
    Layer,
    field::MakeExt,
    filter::filter_fn,
    fmt::{
        self,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

pub use self::{
    filter::FilterError,
    recent::{Line, counted, recent},
};
use self::{output::Output, rate_limit::Flood, recent::Recent};
use crate::{
    config::{LogFormat, LogOptions},
    runtime::escape,
};

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
    Filter(#[from] FilterError),
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
    let filter = filter::parse(&options.log)?;
    let output = match OUTPUT.get() {
        Some(output) => output,
        None => {
            let output = Output::start()?;
            OUTPUT.get_or_init(|| output)
        }
    };
    let is_terminal = stderr().is_terminal();
    let is_text = match options.log_format {
        LogFormat::Text => true,
        LogFormat::Auto => is_terminal,
        LogFormat::Json => false,
    };
    let lines = if is_text {
        let mut lines = fmt::layer()
            .with_writer(|| output.clone())
            .fmt_fields(debug_fn(write_field).delimited(" "));
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        lines.set_ansi(is_terminal && !unwanted);
        lines.boxed()
    } else {
        fmt::layer()
            .with_writer(|| output.as_json())
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed()
    };
    // Installing fails only where a subscriber is there already, which serves
    // as well.
    let _ = registry()
        .with(filter)
        .with(filter_fn(filter::is_public))
        .with(Flood)
        .with(Recent)
        .with(lines)
        .try_init();
    panics::log();
    Ok(())
}

/// Writes a field as the subscriber does by default, without anything that a terminal
/// would take for a command: what Postgres and clients say is in messages and fields.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = escape::line(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        // What `log` says of itself is in the line already.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
        }
        name => write!(writer, "{name}={value}"),
    }
}

/// Writes a text to standard error, after the lines of the log, without anything that
/// a terminal would take for a command.
pub fn say(text: &str) {
    let text = format!("{}\n", escape::lines(text));
    match OUTPUT.get() {
        Some(output) => output.line(text.as_bytes()),
        // Nothing runs yet that could be held up.
        None => {
            let _ = io::Write::write_all(&mut stderr(), text.as_bytes());
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
    rate_limit::tell();
}
