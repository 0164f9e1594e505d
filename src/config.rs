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
    secret::Hidden,
    thresholds::Thresholds,
    tls::TlsOptions,
    trust::{Tickets, TrustOptions},
};
use crate::{
    domain::notification::UserId,
    postgres::{connect::DatabaseUrl, schema::SchemaName},
};

/// Pushes rows of a Postgres table to the browsers of the people they concern.
#[derive(Debug, Parser)]
#[command(
    name = "tidings",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Logging.
    #[command(flatten)]
    pub log: LogOptions,
}

/// What `tidings` does.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, parsed at start")]
pub enum Command {
    /// Stream notifications to browsers
    Serve(ServeOptions),
    /// Create or update the schema in the database
    Migrate(MigrateOptions),
    /// Tell what is wrong, each with what mends it: settings, rights, the way to
    /// the database, the running state
    #[command(after_help = CHECK_EXIT)]
    Check(Box<CheckOptions>),
    /// Show what is so: rows, bridges, the bell, and what `check` finds of it
    #[command(after_help = CHECK_EXIT)]
    Status(StatusOptions),
    /// Notify a user, and print the notification's id
    Send(SendOptions),
    /// Show what a user's stream shows, live, without taking it from the user
    Tail(TailOptions),
    /// Remove rows that were sent long ago, and rows that have expired
    Prune(PruneOptions),
    /// Try it: a private PostgreSQL, the bridge, and a demo page
    Dev(DevOptions),
    /// Sign a token for a user, to try `serve` with curl
    Token(TokenOptions),
    /// Make a ticket, which opens a user's stream with `?ticket=`
    Ticket(TicketOptions),
    /// Print the settings that `serve` would have here, and where each comes from
    Config(Box<ConfigOptions>),
    /// Ask the bridge on this machine whether it is ready, for health checks of
    /// containers
    Health(HealthOptions),
    /// Remove all of it from the database, after having asked
    Uninstall(UninstallOptions),
    /// Print what lets a shell complete this command's line
    Completions(CompletionsOptions),
    /// Print a page for `man`: `tidings man | man -l -`
    Man(ManOptions),
}

const CHECK_EXIT: &str = "Exits with 0 if nothing is wrong (there may be hints), with 1 if \
                          something is, and with 2 if a setting can't be understood.";

/// What is logged unless `TIDINGS_LOG` says otherwise.
pub const DEFAULT_LOG: &str = "warn,tidings=info";

/// How to log.
#[derive(Debug, Args)]
pub struct LogOptions {
    /// Text for people, JSON for machines; auto is text on a terminal
    #[arg(
        long,
        env = "TIDINGS_LOG_FORMAT",
        global = true,
        default_value = "auto"
    )]
    pub log_format: LogFormat,
    /// What to log: a level, or targets and levels (tidings=debug,actix=warn)
    #[arg(
        long,
        env = "TIDINGS_LOG",
        global = true,
        default_value = DEFAULT_LOG
    )]
    pub log: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// A line a person reads.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the database is.
#[derive(Clone, Debug, Args)]
pub struct DatabaseOptions {
    /// Where the database is, as a URL (`postgres://user:password@host/database`)
    /// or as keys and values (host=… dbname=…)
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<Hidden>,
    /// The same, read from a file
    #[arg(long, env = "DATABASE_URL_FILE")]
    pub database_url_file: Option<PathBuf>,
    /// Where the listener and migrations connect, if DATABASE_URL goes through
    /// a pooler
    #[arg(long, env = "TIDINGS_DIRECT_DATABASE_URL", hide_env_values = true)]
    pub direct_database_url: Option<Hidden>,
    /// The same, read from a file
    #[arg(long, env = "TIDINGS_DIRECT_DATABASE_URL_FILE")]
    pub direct_database_url_file: Option<PathBuf>,
    /// The schema that everything lives in
    #[arg(long, env = "TIDINGS_SCHEMA", default_value = "public")]
    pub schema: SchemaName,
}

/// The settings of `tidings serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// Where the database is.
    #[command(flatten)]
    pub database: DatabaseOptions,
    /// Whether `serve` migrates a schema that is too old
    #[arg(long, env = "TIDINGS_MIGRATE", default_value = "auto")]
    pub migrate: MigratePolicy,
    /// Whose tokens are good.
    #[command(flatten)]
    pub jwt: JwtOptions,
    /// HTTPS for browsers.
    #[command(flatten)]
    pub tls: TlsOptions,
    /// What of a request is believed.
    #[command(flatten)]
    pub trust: TrustOptions,
    /// How to serve.
    #[command(flatten)]
    pub bridge: BridgeOptions,
}

/// What `serve` and `dev` have in common.
#[derive(Clone, Debug, Args)]
pub struct BridgeOptions {
    /// Where browsers connect: 127.0.0.1:8080, localhost:8080, or :8080 for every
    /// IPv4 address of this machine (`[::]:8080` for IPv6, too)
    #[arg(long, env = "TIDINGS_LISTEN", default_value = "127.0.0.1:8080", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// Where probes, monitors and operators connect: /health/live, /health/ready,
    /// /metrics, and a page at /
    #[arg(long, env = "TIDINGS_ADMIN_LISTEN", default_value = "127.0.0.1:8081", value_parser = listen_address)]
    pub admin_listen: SocketAddr,
    /// The silence after which a stream gets a heartbeat; proxies cut idle
    /// streams, many after 30 s
    #[arg(long, env = "TIDINGS_HEARTBEAT", default_value = "15s", value_parser = duration_between::<1, 300>)]
    pub heartbeat: Duration,
    /// How long a connection must stay open after a row was written to it until the
    /// row is marked as sent: a page that is being unloaded shows it no more. Longer
    /// than the next page takes to load; 0s marks rows when they are written
    #[arg(long, env = "TIDINGS_SETTLE", default_value = "2s", value_parser = duration_between::<0, 60>)]
    pub settle: Duration,
    /// The time over which streams are ended when the bridge stops
    #[arg(long, env = "TIDINGS_DRAIN", default_value = "2s", value_parser = duration_between::<0, 600>)]
    pub drain: Duration,
    /// Database connections, beside the listener's own
    #[arg(long, env = "TIDINGS_POOL_SIZE", default_value = "8", value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub pool_size: u16,
    /// Bytes of text that may wait for one connection before it is sent back
    /// to reading pages
    #[arg(long, env = "TIDINGS_QUEUE_BYTES", default_value = "262144", value_parser = clap::value_parser!(u32).range(1024..))]
    pub queue_bytes: u32,
    /// How often the table is looked at although nobody rang. So that tests can
    /// do without, and see that nothing rests on it
    #[arg(long, hide = true, default_value = "1s", value_parser = duration_between::<1, 3_600>)]
    pub safety_look: Duration,
    /// Rows of a page of the table's tail at most. So that tests can have
    /// transactions cut that are small
    #[arg(long, hide = true, default_value = "1000", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub tail_rows: u16,
    /// How much is let in.
    #[command(flatten)]
    pub limits: LimitOptions,
    /// How long rows stay.
    #[command(flatten)]
    pub retention: RetentionOptions,
}

/// Whether `serve` may change the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MigratePolicy {
    /// It migrates when the schema is too old.
    Auto,
    /// It only checks; a DBA runs `tidings migrate`.
    Never,
}

/// The settings of `tidings dev`.
#[derive(Debug, Args)]
pub struct DevOptions {
    /// Where the private PostgreSQL keeps its data; default: tidings/dev in
    /// your state folder (as root: /var/lib/tidings/dev)
    #[arg(long, env = "TIDINGS_DEV_DATA")]
    pub data: Option<PathBuf>,
    /// How to serve.
    #[command(flatten)]
    pub bridge: BridgeOptions,
}

/// A setting that is missing or can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No database.
    #[error(
        "set DATABASE_URL (or --database-url) to postgres://user:password@host/database (of libpq's \
             own variables only PGPASSWORD and PGPASSFILE are read, and no pg_service.conf); to try \
             Tidings without a database, run `tidings dev`"
    )]
    NoDatabase,
    /// A URL that can't be used.
    #[error("{name} can't be used: {reason}")]
    Database {
        /// The setting.
        name: &'static str,
        /// What is wrong with it; never its value.
        reason: String,
    },
    /// A setting that was given as it is and in a file.
    #[error("{0} and {0}_FILE are both set: keep one of them")]
    Twice(&'static str),
    /// A file that can't be read.
    #[error("{name}_FILE names {}, which can't be read: {reason}", path.display())]
    File {
        /// The setting.
        name: &'static str,
        /// What it names.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody could be told apart.
    #[error(
        "no authentication is configured, and without it anybody could read everybody's \
             notifications: set TIDINGS_JWT_SECRET (or --jwt-secret) to a secret of 32 bytes at \
             least, made with `openssl rand -hex 32`, and sign users' tokens with it; or tell who \
             signs them, by TIDINGS_JWT_PUBLIC_KEY or TIDINGS_JWKS_URL; or set \
             TIDINGS_TRUSTED_USER_HEADER, behind a proxy that authenticates; or set \
             TIDINGS_TICKETS=on, if create_stream_ticket is all that lets users in"
    )]
    NoAuthentication,
    /// Everybody could say who they are.
    #[error(
        "TIDINGS_TRUSTED_USER_HEADER is set without TIDINGS_TRUSTED_PROXIES, so nobody may set \
             that header: list the addresses of the proxies that authenticate"
    )]
    NoProxies,
    /// `token` can't sign.
    #[error(
        "set TIDINGS_JWT_SECRET (or --jwt-secret) to the secret that `tidings serve` was given"
    )]
    NoSecret,
    /// A key, or what is said of keys.
    #[error("{name} can't be used: {reason}")]
    Key {
        /// The setting.
        name: &'static str,
        /// What is wrong with it; never its value.
        reason: String,
    },
    /// A certificate without its key, or the other way round.
    #[error(
        "TIDINGS_TLS_CERT and TIDINGS_TLS_KEY need each other: set both for HTTPS, or neither \
             behind a proxy that does it"
    )]
    HalfTls,
    /// A certificate or key that can't be used.
    #[error("TIDINGS_TLS_CERT and TIDINGS_TLS_KEY can't be used: {0}")]
    Tls(String),
    /// A variable with a line break or another control character in it.
    #[error(
        "{name} is {value:?}, which has a control character in it: the file that it comes from may \
             have the line ends of Windows (convert it, for example with dos2unix)"
    )]
    ControlCharacter {
        /// The setting.
        name: String,
        /// What it is. It is no secret.
        value: String,
    },
    /// Somebody else could reach `dev`.
    #[error(
        "tidings dev believes whoever asks, so it listens on loopback addresses only: set \
             {setting} to 127.0.0.1:{}, not {address}", address.port()
    )]
    NotLoopback {
        /// The setting.
        setting: &'static str,
        /// What it says.
        address: SocketAddr,
    },
    /// `dev` has nowhere to keep its data.
    #[error("there is no folder to keep the data in: set TIDINGS_DEV_DATA (or --data)")]
    NoDataFolder,
    /// There is no such page.
    #[error("there is no command {0}, so there is no page for it: `tidings help` lists them")]
    NoCommand(String),
}

impl DatabaseOptions {
    /// Where pages are read and marks are written.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn url(&self) -> Result<DatabaseUrl, ConfigError> {
        let (value, file) = (&self.database_url, &self.database_url_file);
        let url = secret::given("DATABASE_URL", value.as_ref(), file.as_deref())?;
        database("DATABASE_URL", &url.ok_or(ConfigError::NoDatabase)?)
    }

    /// Where the listener and migrations connect, if it is somewhere else.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn direct_url(&self) -> Result<Option<DatabaseUrl>, ConfigError> {
        let name = "TIDINGS_DIRECT_DATABASE_URL";
        let (value, file) = (&self.direct_database_url, &self.direct_database_url_file);
        let url = secret::given(name, value.as_ref(), file.as_deref())?;
        url.map(|url| database(name, &url)).transpose()
    }

    /// Where one has a session of one's own.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn session_url(&self) -> Result<DatabaseUrl, ConfigError> {
        match self.direct_url()? {
            Some(url) => Ok(url),
            None => self.url(),
        }
    }
}

fn database(name: &'static str, url: &Hidden) -> Result<DatabaseUrl, ConfigError> {
    url.reveal()
        .trim()
        .parse()
        .map_err(|reason| ConfigError::Database { name, reason })
}

/// Where to listen, as people write it. Names are not looked up: what they lead to may
/// change, and may be an address of another machine.
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
        "it is an address and a port: 127.0.0.1:8080, localhost:8080, [::1]:8080, or :8080 for \
         every address of this machine",
    )
}

fn user(text: &str) -> Result<UserId, &'static str> {
    UserId::parse(text).ok_or("a user is a text of 1 to 255 bytes")
}

/// Durations as people write them: `15s`, `500ms`, `1m 30s`.
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
        for text in [
            short.jwt.tokens().err().expect("too short").to_string(),
            short.database.url().expect_err("no authority").to_string(),
        ] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
