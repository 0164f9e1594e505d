//! What a bridge is built from.

use std::sync::Arc;

use crate::{
    auth::{
        authenticator::{Credentials, QueryUser, TicketPolicy},
        client_addr::Proxies,
        origin::Origins,
    },
    config::{ConfigError, MigratePolicy, ServeOptions, TicketSetting},
    delivery::feed::FeedPolicy,
    fanout::NatsServers,
    http::{demo::Demo, inherited_sockets::InheritedSockets},
    postgres::{connect::DatabaseUrl, schema::SchemaName},
    tls::server_certificate::Certificate,
};

/// What a bridge is built from: its databases, who may connect, and what it serves
/// besides streams.
pub struct Parts {
    /// For reading pages and writing marks.
    pub url: DatabaseUrl,
    /// For the listener and migrations, if `url` goes through a pooler.
    pub direct_url: Option<DatabaseUrl>,
    /// For reading what returning clients have missed.
    pub replica_urls: Vec<DatabaseUrl>,
    /// For sharing what is read with other bridges.
    pub nats: Option<NatsServers>,
    /// Whether this bridge may read for others.
    pub feed: FeedPolicy,
    pub schema: SchemaName,
    /// Whether the schema may be migrated.
    pub migrate: MigratePolicy,
    pub credentials: Credentials,
    /// For HTTPS; without it browsers connect over HTTP.
    pub certificate: Option<Certificate>,
    /// The proxies whose forwarding headers are trusted.
    pub proxies: Proxies,
    /// The origins whose pages may open streams.
    pub origins: Origins,
    /// The demo page of `tidings dev`.
    pub demo: Option<Demo>,
    /// The settings whose files are read again on SIGHUP.
    pub reloadable: Option<Box<ServeOptions>>,
    /// Listening sockets that the service manager passed.
    pub activation: InheritedSockets,
}

impl Parts {
    /// The parts of `tidings serve`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], if a setting is missing or can't be used.
    pub fn of(options: &ServeOptions) -> Result<Self, ConfigError> {
        let user_header = options.trust.user_header()?;
        let tokens = options.tokens()?;
        let credentials = Credentials {
            tokens: tokens.map(Arc::new),
            cookie: options.trust.cookie_name.clone(),
            user_header,
            tickets: match options.trust.tickets {
                Some(TicketSetting::Off) => TicketPolicy::Refused,
                Some(TicketSetting::On) | None => TicketPolicy::Believed,
            },
            query: QueryUser::Ignored,
        };
        Ok(Self {
            credentials,
            proxies: options.trust.trusted_proxies.clone(),
            origins: options.bridge.cors_origins.clone(),
            url: options.database.url()?,
            direct_url: options.database.direct_url()?,
            replica_urls: options.database.replica_urls()?,
            nats: options.nats.servers()?,
            feed: options.nats.feed.into(),
            schema: options.database.schema.clone(),
            migrate: options.migrate,
            certificate: options.tls.certificate()?,
            demo: None,
            reloadable: Some(Box::new(options.clone())),
            activation: InheritedSockets::default(),
        })
    }
}
