//! `TIDINGS_LOG`: which events are logged.

use tracing::Metadata;
use tracing_subscriber::{EnvFilter, filter::Directive};

use crate::config::DEFAULT_LOG;

/// To the HTTP server, a stream that is detached from it is a failed response, which it
/// would log each time ([`crate::http::detached_stream`]).
const DEPARTURES: &str = "actix_http::h1::dispatcher=off";

/// The migrations of earlier releases did not name the schema, so the checksums of the
/// applied ones differ (`docs/decisions/0011-names-are-qualified-in-all-sql.md`).
const CHECKSUMS: &str = "refinery_core::traits::divergent=off";

/// The target where `tokio_postgres` logs the parameters of queries, which contain users
/// and the hashes of tickets. It is never logged, whatever the setting.
const PARAMETERS: &str = "tokio_postgres::query";

/// Targets of version 0.1 whose modules have other names now. `TIDINGS_LOG` accepts them
/// in this version, too.
const RENAMED: [(&str, &str); 25] = [
    ("admission", "http::admission"),
    ("catch_up", "delivery::catch_up"),
    ("demo", "http::demo"),
    ("dev", "cli::dev"),
    ("drained", "delivery::delivered_watermark"),
    ("health", "delivery::health"),
    ("http2", "http::http2"),
    ("key_set", "auth::jwks"),
    ("line", "http::detached_stream"),
    ("listener", "delivery::listener"),
    ("marker", "delivery::marker"),
    ("port", "http::acceptor"),
    ("pruner", "postgres::pruner"),
    ("reader", "delivery::page_reader"),
    ("refusals", "auth::rejections"),
    ("reload", "app::reload"),
    ("report", "monitoring::reporter"),
    ("schema", "postgres::schema"),
    ("shutdown", "app::shutdown"),
    ("sockets", "http::sockets"),
    ("stream", "delivery::stream"),
    ("tail", "cli::tail"),
    ("tasks", "runtime::tasks"),
    ("telemetry", "monitoring::logging"),
    ("ticket", "auth::ticket"),
];

/// The levels, as the setting names them.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why `TIDINGS_LOG` can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TIDINGS_LOG (or --log) can't be used: {0}")]
pub struct FilterError(String);

/// Parses the setting. Empty means the default.
///
/// The library would take a word that is not a level for a target, so `inof` would leave
/// the log empty without any message.
///
/// # Errors
///
/// [`FilterError`], which lists what is allowed.
pub(super) fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    let text = match text.trim() {
        "" => DEFAULT_LOG,
        text => text,
    };
    let mut filter = EnvFilter::builder()
        .parse("off")
        .map_err(|error| FilterError(error.to_string()))?;
    let directives = text.split(',').map(str::trim);
    let directives = directives.filter(|part| !part.is_empty());
    for part in directives.chain([DEPARTURES, CHECKSUMS]) {
        filter = filter.add_directive(directive(&renamed(part))?);
    }
    Ok(filter)
}

/// Whether events of this target may be logged.
pub(super) fn is_public(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with(PARAMETERS)
}

/// A directive whose target has its present name.
fn renamed(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let present = || {
        let target = text.strip_prefix("tidings::")?;
        let (old, new) = RENAMED.iter().find(|(old, _)| {
            let rest = target.strip_prefix(old);
            rest.is_some_and(|rest| !rest.starts_with(is_word))
        })?;
        Some(format!("tidings::{new}{}", &target[old.len()..]))
    };
    present().unwrap_or_else(|| text.to_owned())
}

fn directive(text: &str) -> Result<Directive, FilterError> {
    const HELP: &str = "use a level (off, error, warn, info, debug, trace), or a comma-separated \
                        list of targets and levels: warn,tidings=debug";
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    // Directives with a span are not checked: they are for those who know the library's
    // syntax.
    let has_span = text.contains('[');
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_:-.".contains(c);
    let level = match text.rsplit_once('=') {
        Some((target, _)) if !has_span && (target.is_empty() || !target.chars().all(is_name)) => {
            return Err(FilterError(format!("{target:?} is not a target; {HELP}")));
        }
        Some((_, level)) => Some(level),
        None if text == "tidings" || text.starts_with("tidings::") => None,
        None => Some(text),
    };
    if let Some(word) = level.filter(|word| !has_span && !is_level(word)) {
        return Err(FilterError(format!("{word:?} is not a level; {HELP}")));
    }
    text.parse()
        .map_err(|error| FilterError(format!("{text:?}: {error}; {HELP}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_refused_and_the_rest_is_taken() {
        for good in [
            "",
            " ",
            "info",
            "INFO",
            "off",
            DEFAULT_LOG,
            "warn, tidings=debug,",
            "warn,tidings::http=trace,actix_http=off",
            "tidings",
            "warn,tidings[connection{number=17}]=debug",
        ] {
            parse(good).expect(good);
        }
        for bad in [
            "inof",
            "verbose",
            "warn,tidings=inof",
            "tidings=",
            "=info",
            "info\rdebug",
            "actix_http",
            "warn tidings=debug",
            "warn;tidings=debug",
        ] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains("warn,tidings=debug"), "{bad}: {error}");
        }
    }

    #[test]
    fn targets_of_earlier_versions_mean_those_that_took_their_place() {
        for (text, expected) in [
            (
                "tidings::listener=debug",
                "tidings::delivery::listener=debug",
            ),
            ("tidings::listener", "tidings::delivery::listener"),
            (
                "tidings::stream::opening",
                "tidings::delivery::stream::opening",
            ),
            ("tidings::streams=info", "tidings::streams=info"),
            ("tidings::http=debug", "tidings::http=debug"),
            ("warn", "warn"),
        ] {
            assert_eq!(renamed(text), expected);
        }
    }
}
