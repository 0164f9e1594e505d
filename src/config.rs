//! The settings: each is a flag and an environment variable.

mod commands;
mod environment;
mod jwt;
mod limits;
mod problems;
mod retention;
mod secret;
mod thresholds;
mod tls;
mod trust;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::{
    commands::{
        CheckOptions, CompletionsOptions, ConfigOptions, Form, FormOptions, HealthOptions,
        ManOptions, MigrateOptions, SendOptions, StatusOptions, TailOptions, TicketOptions,
        TokenOptions, UninstallOptions,
    },
    environment::Environment,
    jwt::{JwtOptions, RuleOptions, SecretOptions},
    limits::LimitOptions,
    retention::{PruneOptions, RetentionOptions},
    secret::{Secret, SecretFileError},
    thresholds::Thresholds,
    tls::TlsOptions,
    trust::{TicketSetting, TrustOptions},
};
use crate::{
    domain::notification::UserId,
    postgres::{
        connect::{DatabaseUrl, DatabaseUrlError},
        schema::SchemaName,
    },
    tls::certificates::CertificateFileError,
};

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
    /// Report problems, each with a fix: settings, privileges, the connection to the
    /// database, the running state
    #[command(after_help = CHECK_EXIT)]
    Check(Box<CheckOptions>),
    /// Show the current state: rows, bridges, the doorbell, and what `check` finds in it
    #[command(after_help = CHECK_EXIT)]
    Status(StatusOptions),
    /// Send a notification to a user, and print its id
    Send(SendOptions),
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

/// The default of `TIDINGS_LOG`.
pub const DEFAULT_LOG: &str = "warn,tidings=info";

#[derive(Debug, Args)]
pub struct LogOptions {
    /// Format of the log: text for people, json for programs; auto is text on a terminal
    #[arg(
        long,
        env = "TIDINGS_LOG_FORMAT",
        global = true,
        default_value = "auto"
    )]
    pub log_format: LogFormat,
    /// What to log: a level, or targets with levels (tidings=debug,actix=warn)
    #[arg(
        long,
        env = "TIDINGS_LOG",
        global = true,
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

#[derive(Clone, Debug, Args)]
pub struct DatabaseOptions {
    /// Database, as a URL (`postgres://user:password@host/database`) or as keys and
    /// values (host=… dbname=…)
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Secret>,
    /// File that contains DATABASE_URL
    #[arg(long, env = "DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,
    /// Database for the listener and migrations, if DATABASE_URL goes through a pooler
    #[arg(long, env = "TIDINGS_DIRECT_DATABASE_URL", hide_env_values = true)]
    pub direct_database_url: Option<Secret>,
    /// File that contains `TIDINGS_DIRECT_DATABASE_URL`
    #[arg(long, env = "TIDINGS_DIRECT_DATABASE_URL_FILE")]
    pub direct_database_url_file: Option<PathBuf>,
    /// Schema that contains everything
    #[arg(long, env = "TIDINGS_SCHEMA", default_value = "public")]
    pub schema: SchemaName,
}

#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Whether `serve` migrates an outdated schema
    #[arg(long, env = "TIDINGS_MIGRATE", default_value = "auto")]
    pub migrate: MigratePolicy,
    #[command(flatten)]
    pub jwt: JwtOptions,
    #[command(flatten)]
    pub tls: TlsOptions,
    #[command(flatten)]
    pub trust: TrustOptions,
    #[command(flatten)]
    pub bridge: BridgeOptions,
}

/// The settings that `serve` and `dev` have in common.
#[derive(Clone, Debug, Args)]
pub struct BridgeOptions {
    /// Address for browsers: 127.0.0.1:8080, localhost:8080, or :8080 for every IPv4
    /// address of this machine (`[::]:8080` for IPv6, too)
    #[arg(long, env = "TIDINGS_LISTEN", default_value = "127.0.0.1:8080", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// Address for probes, monitors and operators: /health/live, /health/ready, /metrics,
    /// and a page at /
    #[arg(long, env = "TIDINGS_ADMIN_LISTEN", default_value = "127.0.0.1:8081", value_parser = listen_address)]
    pub admin_listen: SocketAddr,
    /// Time without events after which a stream gets a heartbeat; proxies close idle
    /// streams, many after 30 s
    #[arg(long, env = "TIDINGS_HEARTBEAT", default_value = "15s", value_parser = duration_between::<1, 300>)]
    pub heartbeat: Duration,
    /// How long a connection must stay open after a row was written to it before the row
    /// is marked as sent, because a page that is being unloaded no longer shows it.
    /// Should be longer than the next page takes to load; 0s marks rows when they are
    /// written
    #[arg(long, env = "TIDINGS_SETTLE", default_value = "2s", value_parser = duration_between::<0, 60>)]
    pub settle: Duration,
    /// Time over which streams are ended when the bridge stops
    #[arg(long, env = "TIDINGS_DRAIN", default_value = "2s", value_parser = duration_between::<0, 600>)]
    pub drain: Duration,
    /// Number of database connections, besides the listener's own
    #[arg(long, env = "TIDINGS_POOL_SIZE", default_value = "8", value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub pool_size: u16,
    /// Bytes of text that may wait for one connection before it reads pages instead
    #[arg(long, env = "TIDINGS_QUEUE_BYTES", default_value = "262144", value_parser = clap::value_parser!(u32).range(1024..))]
    pub queue_bytes: u32,
    /// Interval at which the table is polled without a doorbell. For tests, which
    /// lengthen it to prove that nothing depends on it
    #[arg(long, hide = true, alias = "safety-look", default_value = "1s", value_parser = duration_between::<1, 3_600>)]
    pub safety_poll: Duration,
    /// Maximum rows per page of the table's tail. For tests, in which small transactions
    /// must be split
    #[arg(long, hide = true, default_value = "1000", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub tail_rows: u16,
    #[command(flatten)]
    pub limits: LimitOptions,
    #[command(flatten)]
    pub retention: RetentionOptions,
}

/// Whether `serve` may change the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MigratePolicy {
    /// Migrate if the schema is outdated.
    Auto,
    /// Only check; a DBA runs `tidings migrate`.
    Never,
}

#[derive(Debug, Args)]
pub struct DevOptions {
    /// Data folder of the private PostgreSQL; default: tidings/dev in your state folder
    /// (as root: /var/lib/tidings/dev)
    #[arg(long, env = "TIDINGS_DEV_DATA")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub bridge: BridgeOptions,
}

/// A setting that is missing or can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "set DATABASE_URL (or --database-url) to postgres://user:password@host/database (of \
         libpq's variables, only PGPASSWORD and PGPASSFILE are read; pg_service.conf is not); to \
         try Tidings without a database, run `tidings dev`"
    )]
    NoDatabase,
    #[error("{name} can't be used")]
    Database {
        name: &'static str,
        source: Box<DatabaseUrlError>,
    },
    #[error("{0} and {0}_FILE are both set: keep one of them")]
    Twice(&'static str),
    #[error("{name}_FILE names {}, which can't be read", path.display())]
    File {
        name: &'static str,
        path: PathBuf,
        source: SecretFileError,
    },
    #[error(
        "no authentication is configured, so anyone could read all notifications: set \
         TIDINGS_JWT_SECRET (or --jwt-secret) to a secret of at least 32 bytes, generated with \
         `openssl rand -hex 32`, and sign users' tokens with it; or set TIDINGS_JWT_PUBLIC_KEY or \
         TIDINGS_JWKS_URL, if tokens are signed with a private key; or set \
         TIDINGS_TRUSTED_USER_HEADER, behind a proxy that authenticates; or set \
         TIDINGS_TICKETS=on, if users connect only with tickets from create_stream_ticket"
    )]
    NoAuthentication,
    #[error(
        "TIDINGS_TRUSTED_USER_HEADER is set without TIDINGS_TRUSTED_PROXIES, so no proxy may set \
         that header: list the addresses of the proxies that authenticate"
    )]
    NoProxies,
    #[error("set TIDINGS_JWT_SECRET (or --jwt-secret) to the secret that `tidings serve` uses")]
    NoSecret,
    /// A key, or a setting about keys, that can't be used.
    #[error("{name} can't be used: {reason}")]
    Key {
        name: &'static str,
        /// What is wrong with the value, without the value itself.
        reason: String,
    },
    #[error(
        "only one of TIDINGS_TLS_CERT and TIDINGS_TLS_KEY is set: set both for HTTPS, or neither \
         behind a proxy that terminates TLS"
    )]
    HalfTls,
    #[error("TIDINGS_TLS_CERT and TIDINGS_TLS_KEY can't be used")]
    Tls(#[source] Box<CertificateFileError>),
    #[error(
        "{name} is {value:?}, which contains a control character: the file that it comes from may \
         have Windows line endings (convert it, for example with dos2unix)"
    )]
    ControlCharacter {
        name: String,
        /// The value, which is no secret.
        value: String,
    },
    #[error(
        "`tidings dev` doesn't authenticate users, so it listens only on loopback addresses: set \
         {setting} to 127.0.0.1:{}, not {address}", address.port()
    )]
    NotLoopback {
        setting: &'static str,
        address: SocketAddr,
    },
    #[error("no default data folder could be determined: set TIDINGS_DEV_DATA (or --data)")]
    NoDataFolder,
    #[error("there is no command {0}: `tidings help` lists all commands")]
    NoCommand(String),
}

impl DatabaseOptions {
    /// The database for reading pages and writing marks.
    pub fn url(&self) -> Result<DatabaseUrl, ConfigError> {
        let (value, file) = (&self.database_url, &self.database_url_file);
        let url = secret::given("DATABASE_URL", value.as_ref(), file.as_deref())?;
        database("DATABASE_URL", &url.ok_or(ConfigError::NoDatabase)?)
    }

    /// The database for the listener and migrations, if it is configured separately.
    pub fn direct_url(&self) -> Result<Option<DatabaseUrl>, ConfigError> {
        let name = "TIDINGS_DIRECT_DATABASE_URL";
        let (value, file) = (&self.direct_database_url, &self.direct_database_url_file);
        let url = secret::given(name, value.as_ref(), file.as_deref())?;
        url.map(|url| database(name, &url)).transpose()
    }

    /// The URL for sessions that no pooler shares: the direct URL if there is one.
    pub fn session_url(&self) -> Result<DatabaseUrl, ConfigError> {
        match self.direct_url()? {
            Some(url) => Ok(url),
            None => self.url(),
        }
    }
}

fn database(name: &'static str, url: &Secret) -> Result<DatabaseUrl, ConfigError> {
    url.reveal()
        .trim()
        .parse()
        .map_err(|error: DatabaseUrlError| ConfigError::Database {
            name,
            source: error.into(),
        })
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
