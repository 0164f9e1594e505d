//! The settings of the commands for people, which don't serve streams.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use clap_complete::Shell;

use super::{
    ConfigError, DatabaseOptions, RuleOptions, SecretOptions, ServeOptions, Thresholds,
    duration_between,
    jwt::{SECRET, unusable},
    listen_address, topic, user,
};
use crate::{
    auth::{
        jwt::{JwtSecret, Rules},
        jwt_key::KeyKind,
    },
    domain::{
        notification::{Addressee, UserId},
        topic::Topic,
    },
    postgres::{adoption::Expression, memberships::RelationName, schema::SchemaName},
};

/// The format of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct FormOptions {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl FormOptions {
    pub fn form(self) -> Form {
        if self.json { Form::Json } else { Form::Text }
    }
}

#[derive(Debug, Args)]
pub struct MigrateOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Change nothing: print the SQL that would run, in order, as input for psql.
    /// Requires no privilege to change anything
    #[arg(long)]
    pub dry_run: bool,
    /// How long to retry locking tables that are in use; each attempt blocks applications
    /// for at most two seconds
    #[arg(long, default_value = "60s", value_parser = duration_between::<1, 86_400>)]
    pub lock_limit: Duration,
}

#[derive(Debug, Args)]
pub struct RolesOptions {
    /// Schema that contains everything
    #[arg(long, env = "TIDINGS_SCHEMA", default_value = "public")]
    pub schema: SchemaName,
    /// Role that ran `tidings migrate` before, if it is neither yours nor the owner of the
    /// schema: its objects are handed over to `tidings_owner`
    #[arg(long, value_name = "ROLE")]
    pub from: Option<String>,
}

/// The settings of `tidings check`: those of `serve`, whose environment and role it
/// checks.
#[derive(Debug, Args)]
pub struct CheckOptions {
    #[command(flatten)]
    pub serve: ServeOptions,
    #[command(flatten)]
    pub form: FormOptions,
    #[command(flatten, next_help_heading = "Thresholds")]
    pub thresholds: Thresholds,
}

#[derive(Debug, Args)]
pub struct StatusOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    #[command(flatten)]
    pub form: FormOptions,
    #[command(flatten, next_help_heading = "Thresholds")]
    pub thresholds: Thresholds,
}

#[derive(Debug, Args)]
pub struct SendOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// User to notify, unless --topic or --everyone is given
    #[arg(value_name = "USER")]
    first: String,
    /// Text of the notification; - reads it from standard input
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    second: Option<String>,
    /// Notify the subscribers of this topic
    #[arg(long, value_parser = topic)]
    topic: Option<Topic>,
    /// Notify every user: the topic *
    #[arg(long, conflicts_with = "topic")]
    everyone: bool,
    /// Name of the event in the browser; default: message
    #[arg(long)]
    pub event: Option<String>,
    /// Discard the notification if it is not delivered within this time; default: never
    #[arg(long, value_parser = duration_between::<1, 315_360_000>)]
    pub expires: Option<Duration>,
    /// Your own key for the notification, at most 255 bytes; clients that read JSON get it
    #[arg(long = "ref")]
    pub reference: Option<String>,
}

impl SendOptions {
    /// Who is notified, and the text.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], unless exactly one of a user, a topic and everyone is given.
    pub fn message(&self) -> Result<(Addressee, &str), ConfigError> {
        let topic = match self.everyone {
            true => Some(Topic::everyone()),
            false => self.topic.clone(),
        };
        match (topic, &self.second) {
            (Some(topic), None) => Ok((Addressee::Topic(topic), &self.first)),
            (Some(_), Some(_)) => Err(ConfigError::TwoAddressees(self.first.clone())),
            (None, Some(text)) => {
                let user = user(&self.first).map_err(ConfigError::User)?;
                Ok((Addressee::User(user), text))
            }
            (None, None) => Err(ConfigError::NoAddressee),
        }
    }
}

#[derive(Debug, Args)]
pub struct AdoptOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Table, with or without its schema, as in SQL: '"My Table"' with special characters
    pub table: String,
    /// Column that contains the user; rows without a user are not copied
    #[arg(long, value_name = "COLUMN", required_unless_present = "remove")]
    pub user: Option<String>,
    /// Text of the notification
    #[arg(long, value_name = "EXPRESSION", required_unless_present = "remove")]
    pub text: Option<Expression>,
    /// Name of the event in the browser; default: message
    #[arg(long, value_name = "EXPRESSION")]
    pub event: Option<Expression>,
    /// Your own key for the notification; default: the table's name, a colon, and the primary key
    #[arg(long = "ref", value_name = "EXPRESSION")]
    pub reference: Option<Expression>,
    /// Copy only rows that satisfy this
    #[arg(long = "where", value_name = "CONDITION")]
    pub condition: Option<Expression>,
    /// Column, boolean or a time, to set once a row was sent
    #[arg(long, value_name = "COLUMN", conflicts_with = "reference")]
    pub mark: Option<String>,
    /// Also copy the existing rows that satisfy this and --where
    #[arg(long, value_name = "CONDITION")]
    pub existing: Option<Expression>,
    /// Run the SQL instead of printing it
    #[arg(long)]
    pub apply: bool,
    /// End the copying
    #[arg(long, conflicts_with_all = ["user", "text", "event", "reference", "condition", "mark", "existing"])]
    pub remove: bool,
}

#[derive(Debug, Args)]
pub struct TailOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// User whose notifications to print
    #[arg(value_parser = user)]
    pub user: UserId,
    /// Print only rows for this topic, besides the user's own, as `?topic=` does; may be repeated
    #[arg(long = "topic", value_name = "TOPIC", value_parser = topic)]
    pub topics: Vec<Topic>,
    /// Relation of yours that says who is in which topic, if `serve` reads one
    #[arg(long, env = "TIDINGS_MEMBERSHIPS", value_name = "RELATION")]
    pub memberships: Option<RelationName>,
    /// Start with this many of the user's last rows, sent or not, as `?replay=` does
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(crate::delivery::page_reader::REPLAY_ROWS)))]
    pub replay: u32,
    #[command(flatten)]
    pub form: FormOptions,
}

#[derive(Debug, Args)]
pub struct TicketOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// User whose stream the ticket opens; without a user, it has only topics
    #[arg(value_parser = user, required_unless_present = "topics")]
    pub user: Option<UserId>,
    /// Topic that its streams have besides those of the user; may be repeated
    #[arg(long = "topic", value_name = "TOPIC", value_parser = topic)]
    pub topics: Vec<Topic>,
    /// How long the ticket is valid, at most 24h
    #[arg(long, default_value = "1h", value_parser = duration_between::<1, 86_400>)]
    pub ttl: Duration,
}

#[derive(Debug, Args)]
pub struct UninstallOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Don't ask for confirmation
    #[arg(long)]
    pub yes: bool,
}

/// The settings of `tidings config`: those of `serve`, which it prints.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    #[command(flatten)]
    pub serve: ServeOptions,
    #[command(flatten)]
    pub form: FormOptions,
}

#[derive(Debug, Args)]
pub struct HealthOptions {
    /// Address where the bridge answers probes
    #[arg(long, env = "TIDINGS_ADMIN_LISTEN", default_value = "127.0.0.1:8081", value_parser = listen_address)]
    pub admin_listen: SocketAddr,
}

#[derive(Debug, Args)]
pub struct CompletionsOptions {
    /// Shell to print the script for
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManOptions {
    /// Command to print the page of; default: tidings itself
    pub command: Option<String>,
}

#[derive(Debug, Args)]
pub struct TokenOptions {
    /// User to sign the token for
    #[arg(value_parser = user)]
    pub user: UserId,
    /// How long the token is valid
    #[arg(long, default_value = "1h", value_parser = duration_between::<1, 31_536_000>)]
    pub ttl: Duration,
    #[command(flatten)]
    pub secrets: SecretOptions,
    #[command(flatten)]
    pub rules: RuleOptions,
}

impl TokenOptions {
    /// The secret to sign with, and the rules that the token must satisfy.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], also if none of the accepted algorithms signs with a secret.
    pub fn secret(&self) -> Result<(JwtSecret, Rules), ConfigError> {
        let secret = self.secrets.secrets()?.into_iter().next();
        let secret = secret.ok_or(ConfigError::NoSecret)?;
        let rules = self.rules.rules();
        let algorithms = rules.accepted.of(KeyKind::Secret);
        let suited = secret.suits(&algorithms);
        suited.map_err(|reason| unusable(SECRET, reason))?;
        if algorithms.is_empty() {
            let reason = "TIDINGS_JWT_ALGORITHMS contains no algorithm that signs with a secret, \
                          such as HS256: sign tokens where the private key is";
            return Err(unusable(SECRET, reason));
        }
        Ok((secret, rules))
    }
}
