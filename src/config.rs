//! The settings: each is a flag and an environment variable.

mod bridge;
mod commands;
mod database;
mod environment;
mod error;
mod jwt;
mod limits;
mod nats;
mod problems;
mod retention;
mod secret;
mod thresholds;
mod tls;
mod trust;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::{
    bridge::{BridgeOptions, DevOptions, MigratePolicy, ServeOptions},
    commands::{
        AdoptOptions, CheckOptions, CompletionsOptions, ConfigOptions, Form, FormOptions,
        HealthOptions, ManOptions, MigrateOptions, RolesOptions, SendOptions, StatusOptions,
        TailOptions, TicketOptions, TokenOptions, UninstallOptions,
    },
    database::DatabaseOptions,
    environment::Environment,
    error::ConfigError,
    jwt::{JwtOptions, RuleOptions, SecretOptions},
    limits::LimitOptions,
    nats::{FeedSetting, NatsOptions},
    retention::{PruneOptions, RetentionOptions},
    secret::{Secret, SecretFileError},
    thresholds::Thresholds,
    tls::TlsOptions,
    trust::{TicketSetting, TrustOptions},
};
use crate::domain::{notification::UserId, topic::Topic};

/// Pushes rows of a Postgres table to the browsers of the users they are for.
#[derive(Debug, Parser)]
#[command(
    name = "tidings",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogOptions,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, parsed at start")]
pub enum Command {
    /// Stream notifications to browsers
    Serve(ServeOptions),
    /// Create or update the database schema
    Migrate(MigrateOptions),
    /// Print the SQL that creates the roles, for psql: `tidings roles | psql`
    Roles(RolesOptions),
    /// Report problems, each with a fix: settings, privileges, the connection to the
    /// database, the running state
    #[command(after_help = CHECK_EXIT)]
    Check(Box<CheckOptions>),
    /// Show the current state: rows, bridges, the doorbell, and what `check` finds in it
    #[command(after_help = CHECK_EXIT)]
    Status(StatusOptions),
    /// Send a notification to a user, to the subscribers of a topic or to everyone, and print
    /// its id
    #[command(override_usage = SEND_USAGE)]
    Send(SendOptions),
    /// Print the SQL that copies each new row of one of your tables into notifications
    #[command(after_help = ADOPT_EXAMPLE)]
    Adopt(AdoptOptions),
    /// Print a user's notifications live, without marking them as sent
    Tail(TailOptions),
    /// Remove rows that were sent long ago, and expired rows
    Prune(PruneOptions),
    /// Try Tidings: a private PostgreSQL, the bridge, and a demo page
    Dev(DevOptions),
    /// Sign a token for a user, to try `serve` with curl
    Token(TokenOptions),
    /// Create a ticket, which opens a user's stream with `?ticket=`
    Ticket(TicketOptions),
    /// Print the settings that `serve` would use here, and where each comes from
    Config(Box<ConfigOptions>),
    /// Ask the bridge on this machine whether it is ready, for container health checks
    Health(HealthOptions),
    /// Remove Tidings from the database, after asking for confirmation
    Uninstall(UninstallOptions),
    /// Print the completion script for a shell
    Completions(CompletionsOptions),
    /// Print a man page: `tidings man | man -l -`
    Man(ManOptions),
}

const CHECK_EXIT: &str = "Exits with 0 if nothing is wrong (there may be hints), with 1 if \
                          something is, and with 2 if a setting can't be understood.";

/// With a topic, the text is the first positional argument: clap can't say so.
const SEND_USAGE: &str = "tidings send [OPTIONS] <USER> <TEXT>
       tidings send [OPTIONS] --topic <TOPIC> <TEXT>
       tidings send [OPTIONS] --everyone <TEXT>";

const ADOPT_EXAMPLE: &str = "Example: tidings adopt app_notification --user user_id --text text \
                             --where 'not sent'\n\nExpressions and conditions are SQL over the columns \
                             of one row, n. What is not part of Postgres needs its schema: \
                             app.render(n.payload).";

/// The default of `TIDINGS_LOG`.
pub const DEFAULT_LOG: &str = "warn,tidings=info";

/// The position in help texts of options that every command has: after its own.
const LAST: usize = 900;

#[derive(Debug, Args)]
pub struct LogOptions {
    /// Format of the log: text for people, json for programs; auto is text on a terminal
    #[arg(
        long,
        env = "TIDINGS_LOG_FORMAT",
        global = true,
        display_order = LAST,
        default_value = "auto"
    )]
    pub log_format: LogFormat,
    /// What to log: a level, or targets with levels (tidings=debug,actix=warn)
    #[arg(
        long,
        env = "TIDINGS_LOG",
        global = true,
        display_order = LAST,
        default_value = DEFAULT_LOG
    )]
    pub log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Parses an address to listen on, as people write it. Names other than `localhost` are
/// not resolved: what they resolve to may change, and may be an address of another
/// machine.
fn listen_address(text: &str) -> Result<SocketAddr, &'static str> {
    let text = text.trim();
    let port = |port: &str| port.parse::<u16>().ok();
    let address = match text.rsplit_once(':') {
        Some(("", rest)) => port(rest).map(|port| (Ipv4Addr::UNSPECIFIED, port).into()),
        Some((name, rest)) if name.eq_ignore_ascii_case("localhost") => {
            port(rest).map(|port| (Ipv4Addr::LOCALHOST, port).into())
        }
        _ => text.parse().ok(),
    };
    address.ok_or(
        "it must be an address and a port: 127.0.0.1:8080, localhost:8080, [::1]:8080, or :8080 \
         for every address of this machine",
    )
}

fn user(text: &str) -> Result<UserId, &'static str> {
    UserId::parse(text).ok_or("the user must be 1 to 255 bytes long")
}

fn topic(text: &str) -> Result<Topic, &'static str> {
    Topic::parse(text).ok_or("the topic must be 1 to 255 bytes long, without control characters")
}

/// Parses a duration as people write it: `15s`, `500ms`, `1m 30s`. The limits are in
/// seconds.
fn duration_between<const LEAST: u64, const MOST: u64>(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration < Duration::from_secs(LEAST) || duration > Duration::from_secs(MOST) {
        return Err(format!("it must be between {LEAST}s and {MOST}s"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::runtime::error_chain::ErrorChain;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn addresses_to_listen_on_may_be_written_as_elsewhere() {
        for (text, expected) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            (" 10.0.0.1:0 ", "10.0.0.1:0"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::]:8080", "[::]:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("LocalHost:1", "127.0.0.1:1"),
            (":8080", "0.0.0.0:8080"),
        ] {
            let expected: SocketAddr = expected.parse().expect(expected);
            assert_eq!(listen_address(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            ":",
            "8080",
            "localhost",
            "localhost:",
            "localhost:65536",
            ":-1",
            "127.0.0.1",
            "::1:8080",
            "example.org:8080",
            "localhost.example.org:8080",
            "*:8080",
            "http://127.0.0.1:8080",
        ] {
            let error = listen_address(text).expect_err(text);
            assert!(error.contains("localhost:8080"), "{text}: {error}");
        }
    }

    #[test]
    fn the_debug_form_of_the_settings_holds_no_secret() {
        let arguments = [
            "tidings",
            "serve",
            "--database-url=postgres://app:hunter2@db/app",
            "--jwt-secret=0123456789abcdef0123456789abcdef",
        ];
        let cli = Cli::parse_from(arguments);
        let Command::Serve(options) = &cli.command else {
            panic!("not serve: {cli:?}")
        };
        let url = options.database.url().expect("a URL");
        for text in [
            format!("{cli:?}"),
            format!("{url:?}"),
            format!("{:?}", options.jwt.tokens().err()),
        ] {
            assert!(
                !text.contains("hunter2") && !text.contains("0123456789"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_bad_secret_or_url_is_refused_without_showing_it() {
        let options = |url: &str, secret: &str| {
            let arguments = [
                "tidings",
                "serve",
                "--database-url",
                url,
                "--jwt-secret",
                secret,
            ]
            .map(String::from);
            match Cli::parse_from(arguments).command {
                Command::Serve(options) => options,
                other => panic!("not serve: {other:?}"),
            }
        };
        let short = options(
            "postgres://app:hunter2@db/app?sslmode=verify-full",
            "hunter2",
        );
        for error in [
            short.jwt.tokens().err().expect("too short"),
            short.database.url().expect_err("no authority"),
        ] {
            let text = format!("{} {error:?}", ErrorChain(&error));
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
