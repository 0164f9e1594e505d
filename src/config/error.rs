//! Why the settings can't be used.

use std::{net::SocketAddr, path::PathBuf};

use super::SecretFileError;
use crate::{
    fanout::NatsError, postgres::connect::DatabaseUrlError, tls::certificates::CertificateFileError,
};

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
    #[error(
        "TIDINGS_REPLICA_DATABASE_URL has {0} parts, separated by spaces or line breaks, and at most \
         16 are allowed: write each replica as a URL (postgres://user:password@host/database)"
    )]
    TooManyReplicas(usize),
    #[error("{0} is set without TIDINGS_NATS_URL: set TIDINGS_NATS_URL to nats://host:4222")]
    NoNatsUrl(&'static str),
    #[error(
        "TIDINGS_NATS_CREDENTIALS_FILE and TIDINGS_NATS_NKEY_FILE are both set: keep one of them"
    )]
    TwoNatsIdentities,
    #[error("TIDINGS_NATS_URL and its files can't be used")]
    Nats(#[source] Box<NatsError>),
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
    #[error("{0}")]
    User(&'static str),
    #[error(
        "a notification needs a recipient and a text: tidings send USER TEXT, tidings send --topic \
         TOPIC TEXT, or tidings send --everyone TEXT"
    )]
    NoAddressee,
    #[error(
        "a notification has one recipient: leave out the user {0:?}, or --topic and --everyone (a \
         text of several words needs quotation marks, and one that begins with a hyphen comes \
         after --)"
    )]
    TwoAddressees(String),
    #[error("there is no command {0}: `tidings help` lists all commands")]
    NoCommand(String),
}
