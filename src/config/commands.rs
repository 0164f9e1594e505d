//! The settings of the commands for people: they ask and tell, and don't serve.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use clap_complete::Shell;

use super::{
    ConfigError, DatabaseOptions, RuleOptions, SecretOptions, ServeOptions, Thresholds,
    duration_between,
    jwt::{SECRET, unusable},
    listen_address, user,
};
use crate::{
    auth::{
        jwt::{JwtSecret, Rules},
        jwt_key::Kind,
    },
    domain::notification::UserId,
};

/// For whom something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// For whom something is printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormOptions {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl FormOptions {
    /// For whom.
    pub fn form(self) -> Form {
        if self.json { Form::Json } else { Form::Text }
    }
}

/// The settings of `tidings migrate`.
#[derive(Debug, Args)]
pub struct MigrateOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Change nothing: print the SQL that would run, in its order, as psql takes
    /// it. It needs no right to change anything
    #[arg(long)]
    pub dry_run: bool,
    /// How long to try to get tables for itself that others use; applications wait for
    /// two seconds at most, each time
    #[arg(long, default_value = "60s", value_parser = duration_between::<1, 86_400>)]
    pub lock_limit: Duration,
}

/// The settings of `tidings check`: those of `serve`, whose environment and role
/// it looks at.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// What would serve.
    #[command(flatten)]
    pub serve: ServeOptions,
    /// For whom.
    #[command(flatten)]
    pub form: FormOptions,
    /// What is wrong.
    #[command(flatten, next_help_heading = "Thresholds")]
    pub thresholds: Thresholds,
}

/// The settings of `tidings status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// For whom.
    #[command(flatten)]
    pub form: FormOptions,
    /// What is wrong.
    #[command(flatten, next_help_heading = "Thresholds")]
    pub thresholds: Thresholds,
}

/// The settings of `tidings send`.
#[derive(Debug, Args)]
pub struct SendOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Whom to notify
    #[arg(value_parser = user)]
    pub user: UserId,
    /// What to say; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    pub text: String,
    /// The name of the browser's event; default: message
    #[arg(long)]
    pub event: Option<String>,
    /// For how long it is worth delivering; default: for ever
    #[arg(long, value_parser = duration_between::<1, 315_360_000>)]
    pub expires: Option<Duration>,
}

/// The settings of `tidings tail`.
#[derive(Debug, Args)]
pub struct TailOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Whose notifications
    #[arg(value_parser = user)]
    pub user: UserId,
    /// Begin with so many of the user's last rows, sent or not, as `?replay=` does
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(crate::delivery::page_reader::REPLAY_ROWS)))]
    pub replay: u32,
    /// For whom.
    #[command(flatten)]
    pub form: FormOptions,
}

/// The settings of `tidings ticket`.
#[derive(Debug, Args)]
pub struct TicketOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Whose stream it opens
    #[arg(value_parser = user)]
    pub user: UserId,
    /// How long it is valid, at most 24h
    #[arg(long, default_value = "1h", value_parser = duration_between::<1, 86_400>)]
    pub ttl: Duration,
}

/// The settings of `tidings uninstall`.
#[derive(Debug, Args)]
pub struct UninstallOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
}

/// The settings of `tidings config`: those of `serve`.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    /// What would serve.
    #[command(flatten)]
    pub serve: ServeOptions,
    /// For whom.
    #[command(flatten)]
    pub form: FormOptions,
}

/// The settings of `tidings health`.
#[derive(Debug, Args)]
pub struct HealthOptions {
    /// Where the bridge answers probes
    #[arg(long, env = "TIDINGS_ADMIN_LISTEN", default_value = "127.0.0.1:8081", value_parser = listen_address)]
    pub admin_listen: SocketAddr,
}

/// The settings of `tidings completions`.
#[derive(Debug, Args)]
pub struct CompletionsOptions {
    /// For which shell
    pub shell: Shell,
}

/// The settings of `tidings man`.
#[derive(Debug, Args)]
pub struct ManOptions {
    /// Of which command; default: of tidings itself
    pub command: Option<String>,
}

/// The settings of `tidings token`.
#[derive(Debug, Args)]
pub struct TokenOptions {
    /// Whose token it is
    #[arg(value_parser = user)]
    pub user: UserId,
    /// How long it is valid
    #[arg(long, default_value = "1h", value_parser = duration_between::<1, 31_536_000>)]
    pub ttl: Duration,
    /// What `serve` was given.
    #[command(flatten)]
    pub secrets: SecretOptions,
    /// What a good token is, as `serve` was told.
    #[command(flatten)]
    pub rules: RuleOptions,
}

impl TokenOptions {
    /// What to sign with, and by what rules.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn secret(&self) -> Result<(JwtSecret, Rules), ConfigError> {
        let secret = self.secrets.secrets()?.into_iter().next();
        let secret = secret.ok_or(ConfigError::NoSecret)?;
        let rules = self.rules.rules();
        let algorithms = rules.accepted.of(Kind::Secret);
        let suited = secret.suits(&algorithms);
        suited.map_err(|reason| unusable(SECRET, reason))?;
        if algorithms.is_empty() {
            let reason = "TIDINGS_JWT_ALGORITHMS names none that a secret signs with, such as \
                          HS256: sign where the private key is";
            return Err(unusable(SECRET, reason));
        }
        Ok((secret, rules))
    }
}
