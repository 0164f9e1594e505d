//! Logging: text for people, JSON for programs. `docs/operations/logs.md` describes the
//! levels and fields.

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
pub use crate::runtime::error_chain::ErrorChain;
use crate::{
    config::{LogFormat, LogOptions},
    runtime::escape,
};

/// How often the number of missing lines is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How long the process may wait at its end for the reader of the log.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// One per process, as standard error is. Empty until [`install`].
static OUTPUT: OnceLock<Output> = OnceLock::new();

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("can't start the thread that writes the log")]
    Thread(#[from] io::Error),
}

/// Installs the process-wide subscriber, which writes to standard error without ever
/// waiting for the reader, and logs panics.
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
    // This fails only if a subscriber is installed already, which serves as well.
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

/// Writes a field as the subscriber does by default, but escapes everything that a
/// terminal would execute: messages and fields contain text from Postgres and clients.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = escape::line(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        // The fields that `log` adds are in the line already.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
        }
        name => write!(writer, "{name}={value}"),
    }
}

/// Writes a text to standard error, after the lines of the log, and escapes everything
/// that a terminal would execute.
pub fn say(text: &str) {
    let text = format!("{}\n", escape::lines(text));
    match OUTPUT.get() {
        Some(output) => output.line(text.as_bytes()),
        // Nothing is running yet that this could block.
        None => {
            let _ = io::Write::write_all(&mut stderr(), text.as_bytes());
        }
    }
}

/// Waits until the log is written, for at most [`FLUSH_LIMIT`].
pub fn flush() {
    if let Some(output) = OUTPUT.get() {
        output.flush(FLUSH_LIMIT);
    }
}

/// The number of lines that were dropped because standard error was not read.
pub fn dropped() -> u64 {
    OUTPUT.get().map_or(0, Output::dropped)
}

/// Periodically logs how many lines are missing from the log: those that the rate limit
/// suppressed, and those that were dropped because standard error was not read in time.
/// Never returns.
pub async fn keep_telling_what_is_missing() {
    let (mut pace, mut reported) = (interval(LOG_INTERVAL), 0);
    loop {
        pace.tick().await;
        report_suppressed();
        let dropped = dropped();
        // While standard error is not read, this line would be dropped too.
        if dropped > reported && OUTPUT.get().is_some_and(Output::has_room) {
            let count = dropped - reported;
            warn!(
                count,
                "{count} log lines were dropped: standard error was not read fast enough, or was \
                 closed; check the program that reads it"
            );
            reported = dropped;
        }
    }
}

/// Logs how many lines the rate limit has suppressed since the last call.
pub fn report_suppressed() {
    rate_limit::report();
}
