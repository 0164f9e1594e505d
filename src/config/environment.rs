//! Checks the environment as a whole: variables that look like settings and are none, and
//! values that can't be meant.

use std::{collections::BTreeMap, ffi::OsString};

use clap::CommandFactory;

use super::{Cli, ConfigError};

/// The prefix of all variables of Tidings' own.
const PREFIX: &str = "TIDINGS_";

/// Settings that are lists. Their parts are trimmed, so a list may span several lines.
const LISTS: [&str; 6] = [
    "TIDINGS_CORS_ORIGINS",
    "TIDINGS_JWT_ALGORITHMS",
    "TIDINGS_JWT_AUDIENCE",
    "TIDINGS_JWT_ISSUER",
    "TIDINGS_LOG",
    "TIDINGS_TRUSTED_PROXIES",
];

/// Variables that were renamed in this version, with their new names.
const RENAMED: [(&str, &str); 1] = [("TIDINGS_COME_BACK", "TIDINGS_RETRY_AFTER")];

/// How similar a name must be, between 0 and 1, to be suggested for another one: two or
/// three wrong letters in a dozen.
const SIMILAR: f64 = 0.8;

/// Variables of libpq that decide where a connection leads or what it trusts, and that
/// Tidings doesn't read. Others, such as `PGHOST`, are often set for psql alone.
const LIBPQ: [(&str, &str); 8] = [
    (
        "PGSERVICE",
        "service files (pg_service.conf) are not read: put the service's parameters into \
         DATABASE_URL",
    ),
    (
        "PGSERVICEFILE",
        "service files (pg_service.conf) are not read: put the service's parameters into \
         DATABASE_URL",
    ),
    ("PGSSLMODE", "add sslmode=… to DATABASE_URL"),
    ("PGSSLROOTCERT", "add sslrootcert=… to DATABASE_URL"),
    ("PGSSLCERT", "add sslcert=… to DATABASE_URL"),
    ("PGSSLKEY", "add sslkey=… to DATABASE_URL"),
    ("PGCHANNELBINDING", "add channel_binding=… to DATABASE_URL"),
    (
        "PGREQUIREAUTH",
        "add channel_binding=require to DATABASE_URL",
    ),
];

/// The variables of a process whose names are valid Unicode.
#[derive(Clone, Debug)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// Rejects values that can't be meant in any setting.
    ///
    /// A line break at the end of a value, as left by files with Windows line endings,
    /// would otherwise become part of the name of a schema or claim. Secrets, URLs, keys
    /// and lists are trimmed instead.
    ///
    /// # Errors
    ///
    /// [`ConfigError::ControlCharacter`].
    pub fn check(&self) -> Result<(), ConfigError> {
        for (name, is_secret) in known() {
            let is_trimmed = is_secret || LISTS.contains(&name.as_str());
            let value = self.0.get(&name).filter(|_| !is_trimmed);
            if let Some(value) = value.filter(|value| value.contains(char::is_control)) {
                let value = value.clone();
                return Err(ConfigError::ControlCharacter { name, value });
            }
        }
        Ok(())
    }

    /// Warnings about variables that look like settings and have no effect, each with the
    /// setting that may be meant.
    ///
    /// They are not errors: the variable may belong to a later version, and an earlier
    /// version must be able to run in the environment of a later one.
    pub fn warnings(&self) -> Vec<String> {
        let known = known();
        let unknown = self.0.iter().filter(|(name, value)| {
            name.to_ascii_uppercase().starts_with(PREFIX)
                && !known.contains_key(*name)
                && !is_of_kubernetes(name, value)
        });
        let unknown = unknown.map(|(name, _)| match nearest(name, known.keys()) {
            Some(meant) => format!(
                "{name} is set but has no effect: there is no such setting; did you mean {meant}?"
            ),
            None => format!(
                "{name} is set but has no effect: there is no such setting in version {}; \
                 `tidings config` lists them",
                env!("CARGO_PKG_VERSION")
            ),
        });
        let renamed = RENAMED.iter().filter(|(old, _)| self.0.contains_key(*old));
        let renamed = renamed.map(|(old, new)| {
            format!(
                "{old} is now called {new}: rename it, because the next version won't accept the \
                 old name"
            )
        });
        let libpq = LIBPQ.iter().filter(|(name, _)| {
            let value = self.0.get(*name);
            value.is_some_and(|value| !value.is_empty())
        });
        let libpq =
            libpq.map(|(name, instead)| format!("{name} is set but has no effect: {instead}"));
        unknown.chain(renamed).chain(libpq).collect()
    }
}

impl FromIterator<(OsString, OsString)> for Environment {
    fn from_iter<I: IntoIterator<Item = (OsString, OsString)>>(variables: I) -> Self {
        let text = |(name, value): (OsString, OsString)| {
            let value = value.to_string_lossy().into_owned();
            Some((name.into_string().ok()?, value))
        };
        Self(variables.into_iter().filter_map(text).collect())
    }
}

/// The variables of all commands, and whether each holds a secret.
fn known() -> BTreeMap<String, bool> {
    let cli = Cli::command();
    let commands = cli.get_subcommands().chain([&cli]);
    let arguments = commands.flat_map(clap::Command::get_arguments);
    let variables = arguments.filter_map(|argument| {
        let name = argument.get_env()?.to_str()?.to_owned();
        Some((name, argument.is_hide_env_values_set()))
    });
    variables.collect()
}

/// The known name that is most similar to `name`, if one is similar enough.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let name = name.to_ascii_uppercase();
    let distinctive = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let wanted = distinctive(&name);
    let alike = known.map(|known| {
        let alike = strsim::normalized_damerau_levenshtein(&wanted, &distinctive(known));
        (known, alike)
    });
    let alike = alike.filter(|(_, alike)| *alike >= SIMILAR);
    let nearest = alike.max_by(|one, other| one.1.total_cmp(&other.1));
    nearest.map(|(known, _)| known)
}

/// Whether Kubernetes sets this variable in each container of a namespace that has a
/// Service whose name begins with `tidings`: `TIDINGS_SERVICE_HOST`,
/// `TIDINGS_PORT_80_TCP_ADDR`, ….
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_service = name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_");
    let is_link = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    let is_port = ["_TCP", "_UDP", "_SCTP"]
        .iter()
        .any(|protocol| name.contains(protocol))
        && name.contains("_PORT_");
    is_service || is_port || (name.ends_with("_PORT") && is_link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter();
        variables
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect()
    }

    #[test]
    fn a_mistyped_name_is_reported_with_the_right_one() {
        for (name, meant) in [
            ("TIDINGS_LISTN", "TIDINGS_LISTEN"),
            ("TIDINGS_ADMINLISTEN", "TIDINGS_ADMIN_LISTEN"),
            ("TIDINGS_JWT_SECERT", "TIDINGS_JWT_SECRET"),
            ("TIDINGS_JWT_SECRETS_FILE", "TIDINGS_JWT_SECRET_FILE"),
            ("TIDINGS_DATABASE_URL", "DATABASE_URL"),
            ("TIDINGS_MAX_CONNECTION", "TIDINGS_MAX_CONNECTIONS"),
            ("tidings_schema", "TIDINGS_SCHEMA"),
        ] {
            let warnings = environment(&[(name, "x")]).warnings();
            let [warning] = &warnings[..] else {
                panic!("{name}: {warnings:?}")
            };
            assert!(warning.starts_with(name), "{warning}");
            assert!(
                warning.contains(&format!("did you mean {meant}?")),
                "{warning}"
            );
        }
        let warnings = environment(&[("TIDINGS_FUTURE", "2s")]).warnings();
        assert!(
            warnings[0].contains("no such setting in version"),
            "{warnings:?}"
        );
        let warnings = environment(&[("TIDINGS_COME_BACK", "1s")]).warnings();
        assert!(
            warnings[0].contains("now called TIDINGS_RETRY_AFTER"),
            "{warnings:?}"
        );
        let warnings = environment(&[("PGSERVICE", "app")]).warnings();
        assert!(warnings[0].contains("pg_service.conf"), "{warnings:?}");
    }

    #[test]
    fn what_is_a_setting_or_none_of_ours_is_passed_over() {
        let is_renamed = |name: &str| RENAMED.iter().any(|&(old, _)| old == name);
        for name in known().keys().filter(|name| !is_renamed(name)) {
            assert_eq!(environment(&[(name, "x")]).warnings(), [""; 0]);
        }
        let others = environment(&[
            ("PATH", "/bin"),
            ("PGHOST", "db"),
            ("PGPASSWORD", "hunter2"),
            ("PGSERVICE", ""),
            ("TIDINGS_SERVICE_HOST", "10.0.0.1"),
            ("TIDINGS_SERVICE_PORT", "80"),
            ("TIDINGS_SERVICE_PORT_STREAM", "80"),
            ("TIDINGS_PORT", "tcp://10.0.0.1:80"),
            ("TIDINGS_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("TIDINGS_PORT_80_TCP_PROTO", "tcp"),
            ("TIDINGS_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("TIDINGS_ADMIN_SERVICE_HOST", "10.0.0.2"),
        ]);
        assert_eq!(others.warnings(), [""; 0]);
        assert_eq!(environment(&[("TIDINGS_PORT", "8080")]).warnings().len(), 1);
    }

    #[test]
    fn line_ends_of_windows_are_refused_except_where_they_are_trimmed() {
        for name in ["TIDINGS_SCHEMA", "TIDINGS_LISTEN", "TIDINGS_JWT_USER_CLAIM"] {
            let error = environment(&[(name, "app\r")]).check().expect_err(name);
            let error = error.to_string();
            assert!(
                error.contains(name) && error.contains(r#""app\r""#),
                "{error}"
            );
        }
        let mut trimmed = vec![("DATABASE_URL", "x\r\n"), ("TIDINGS_JWT_SECRET", "a\nb")];
        trimmed.extend(LISTS.map(|name| (name, "a,\r\nb\n")));
        environment(&trimmed).check().expect("they are trimmed");
        for name in LISTS {
            assert!(known().contains_key(name), "{name}");
        }
    }
}
