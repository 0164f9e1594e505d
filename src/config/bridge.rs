//! The settings of the commands that run a bridge: `serve` and `dev`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    DatabaseOptions, JwtOptions, LimitOptions, NatsOptions, RetentionOptions, TlsOptions,
    TrustOptions, duration_between, listen_address,
};
use crate::{auth::origin::Origins, postgres::memberships::RelationName};

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
    pub nats: NatsOptions,
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
    /// Origins whose pages may read streams with the user's cookie, exact and separated
    /// by commas (`https://app.example.org`, or for an app or extension
    /// `capacitor://localhost`, `chrome-extension://…`); pages of the stream's own origin
    /// always may
    #[arg(
        long,
        env = "TIDINGS_CORS_ORIGINS",
        default_value = "",
        hide_default_value = true
    )]
    pub cors_origins: Origins,
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
    /// How often it is stored where a connected user continues in the topics if the next
    /// connection presents no last event id; it is also stored when a stream ends
    #[arg(long, env = "TIDINGS_CURSOR_EVERY", default_value = "10m", value_parser = duration_between::<1, 86_400>)]
    pub cursor_every: Duration,
    /// Relation of yours that says who is in which topic, with its schema, instead of
    /// `topic_subscriptions`: a view or table with the columns `user_id` (text, a number or
    /// uuid), topic, and since (`pg_snapshot`, may be null)
    #[arg(long, env = "TIDINGS_MEMBERSHIPS", value_name = "RELATION")]
    pub memberships: Option<RelationName>,
    /// Time over which streams are ended when the bridge stops
    #[arg(long, env = "TIDINGS_DRAIN", default_value = "2s", value_parser = duration_between::<0, 600>)]
    pub drain: Duration,
    /// Number of database connections, besides the listener's own
    #[arg(long, env = "TIDINGS_POOL_SIZE", default_value = "8", value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub pool_size: u16,
    /// Bytes of text that may wait for one connection before it reads pages instead
    #[arg(long, env = "TIDINGS_QUEUE_BYTES", default_value = "262144", value_parser = clap::value_parser!(u32).range(1024..))]
    pub queue_bytes: u32,
    /// Bytes of memory for the rows of the last minute, which clients that return get without
    /// a query; 0 for none
    #[arg(long, env = "TIDINGS_RECENT_BYTES", default_value = "33554432")]
    pub recent_bytes: u32,
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
