//! Logging: text for people, JSON for machines. `docs/operations/logs.md` says what
//! the levels and fields mean.

mod flood;
mod recent;

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{
    EnvFilter, Layer, filter::ParseError, fmt, layer::SubscriberExt, registry,
    util::SubscriberInitExt,
};

use self::{flood::Flood, recent::Recent};
pub use self::{
    flood::{keep_telling_what_was_left_out, tell_what_was_left_out},
    recent::{Line, counted, recent},
};
use crate::config::{LogFormat, LogOptions};

/// To the server a stream that leaves it is a response that failed, and it would
/// say so each time ([`crate::line`]).
const DEPARTURES: &str = "actix_http::h1::dispatcher=off";

/// Installs the process-wide subscriber, which writes to standard error.
///
/// # Errors
///
/// If the filter can't be understood.
pub fn install(options: &LogOptions) -> Result<(), ParseError> {
    let filter = EnvFilter::builder()
        .parse(&options.log)?
        .add_directive(DEPARTURES.parse()?);
    let is_terminal = stderr().is_terminal();
    let mut lines = fmt::layer().with_writer(stderr);
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
    Ok(())
}
