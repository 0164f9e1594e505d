//! Logging: text for people, JSON for machines.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, filter::ParseError};

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
    let terminal = stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr);
    // Installing fails only where a subscriber is there already, which serves
    // as well.
    let _ = match options.log_format {
        LogFormat::Text => builder.with_ansi(terminal).try_init(),
        LogFormat::Auto if terminal => builder.try_init(),
        LogFormat::Json | LogFormat::Auto => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
