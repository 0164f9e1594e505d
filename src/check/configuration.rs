//! Whether `serve` would refuse the settings.

use super::finding::{Finding, Fix, Subject};
use crate::{
    config::{ConfigError, Environment, ServeOptions},
    runtime::error_chain::ErrorChain,
};

/// Settings that `serve` would refuse, and settings that may be mistakes.
///
/// That no authentication is configured is only a hint: `check` may run on another
/// machine than the bridge, one that has no key.
pub fn configuration(options: &ServeOptions, environment: &Environment) -> Vec<Finding> {
    const EXPECTED: &str = "the settings of the bridge, as `tidings config` shows them";
    let refused = options.problems().into_iter().map(|problem| match problem {
        ConfigError::NoAuthentication => Finding::hint(
            Subject::Configuration,
            "no authentication is configured here, so `tidings serve` would refuse to start here"
                .to_owned(),
            EXPECTED,
            Fix::Advice(
                "where the bridge runs, set TIDINGS_JWT_SECRET or configure another \
                 authentication method"
                    .to_owned(),
            ),
        ),
        problem => Finding::wrong(
            Subject::Configuration,
            "`tidings serve` would refuse to start here".to_owned(),
            EXPECTED,
            Fix::Advice(ErrorChain(&problem).to_string()),
        ),
    });
    let doubtful = options.warnings().into_iter().map(|warning| {
        Finding::hint(
            Subject::Configuration,
            "a setting may be a mistake".to_owned(),
            "only your own proxies are trusted",
            Fix::Advice(warning),
        )
    });
    let ineffective = environment.warnings().into_iter().map(|warning| {
        Finding::hint(
            Subject::Configuration,
            "a variable looks like a setting but isn't one".to_owned(),
            "only the variables that `tidings config` lists: a mistyped one leaves its setting at \
             the default",
            Fix::Advice(warning),
        )
    });
    refused.chain(doubtful).chain(ineffective).collect()
}
