//! The NATS servers that carry messages between bridges, and as whom to connect to them.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{ConnectOptions, ServerAddr};
use nkeys::{KeyPair, KeyPairType};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;

use crate::tls::certificates::{self, CertificateFileError};

/// The most servers in the setting. Further servers of a cluster are found by themselves.
const MOST_SERVERS: usize = 16;

/// How long connecting to a server may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How often a server that sends nothing is asked whether it is there. A second question
/// without an answer ends the connection, and another server is tried.
const PING_EVERY: Duration = Duration::from_secs(2);

/// The longest wait before connecting again.
const RECONNECT_LONGEST: Duration = Duration::from_secs(2);

/// How many messages may wait to be sent, and how many to be taken: 16 and 32 MiB at most.
const WAITING_OUT: usize = 64;
const WAITING_IN: usize = 128;

/// As whom to connect.
#[derive(Clone, PartialEq, Eq)]
pub enum NatsIdentity {
    /// As the user in the URLs, or without credentials.
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    /// The text of a credentials file: a JWT and the seed of its key.
    Credentials(Arc<str>),
    /// The seed of an NKEY.
    Nkey(Arc<str>),
}

#[derive(Clone)]
pub struct NatsServers {
    addresses: Vec<ServerAddr>,
    identity: NatsIdentity,
    authority: Option<PathBuf>,
}

/// Why these servers can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    #[error("it names no server: write nats://host:4222, or tls://host:4222")]
    NoServer,
    #[error("it names {0} servers, and at most {MOST_SERVERS} are allowed")]
    TooMany(usize),
    /// The URL may contain a password, so it isn't shown.
    #[error("server {0} of the list is not a URL like nats://host:4222 or tls://host:4222")]
    Url(usize),
    #[error("its servers have different users: one user must be valid for all of them")]
    Users,
    #[error(
        "it names a user, and so does TIDINGS_NATS_CREDENTIALS_FILE or TIDINGS_NATS_NKEY_FILE: \
         keep one of them"
    )]
    TwoIdentities,
    #[error("the credentials can't be used: they must contain a user's JWT and NKEY seed")]
    Credentials(#[source] io::Error),
    #[error("the NKEY can't be used: it must be the seed of a user, which begins with SU")]
    Nkey,
    #[error(transparent)]
    Authority(#[from] CertificateFileError),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl NatsServers {
    /// `urls` are separated by commas or white space. `authority` is a file of certificates
    /// to trust instead of the system's.
    ///
    /// # Errors
    ///
    /// [`NatsError`], without any secret.
    pub fn new(
        urls: &str,
        identity: NatsIdentity,
        authority: Option<PathBuf>,
    ) -> Result<Self, NatsError> {
        let urls = urls.split(|it: char| it == ',' || it.is_whitespace());
        let urls = urls.filter(|url| !url.is_empty());
        let address = |(index, url): (usize, &str)| {
            let address: Option<ServerAddr> = url.parse().ok();
            let is_nats = |it: &ServerAddr| ["nats", "tls"].contains(&it.scheme());
            let address = address.filter(|it| is_nats(it) && !it.host().is_empty());
            address.ok_or(NatsError::Url(index + 1))
        };
        let addresses: Vec<_> = urls.enumerate().map(address).collect::<Result<_, _>>()?;
        match addresses.len() {
            0 => return Err(NatsError::NoServer),
            1..=MOST_SERVERS => {}
            count => return Err(NatsError::TooMany(count)),
        }
        let mut users: Vec<_> = addresses.iter().filter_map(user_of).collect();
        users.dedup();
        let identity = match (users.pop(), identity) {
            (None, identity) => identity,
            (Some(_), _) if !users.is_empty() => return Err(NatsError::Users),
            (Some(user), NatsIdentity::Anonymous) => user,
            (Some(_), _) => return Err(NatsError::TwoIdentities),
        };
        let servers = Self {
            addresses,
            identity,
            authority,
        };
        servers.options()?;
        Ok(servers)
    }

    pub(super) fn addresses(&self) -> &[ServerAddr] {
        &self.addresses
    }

    /// Each of the servers by itself.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> {
        self.addresses.iter().map(|address| Self {
            addresses: vec![address.clone()],
            ..self.clone()
        })
    }

    /// For a connection that lasts as long as the bridge.
    ///
    /// # Errors
    ///
    /// [`NatsError`], if a file can't be used.
    pub(super) fn options(&self) -> Result<ConnectOptions, NatsError> {
        let options = self.options_once()?;
        Ok(options.retry_on_initial_connect().max_reconnects(None))
    }

    /// For a connection to exactly these servers that fails at once.
    ///
    /// # Errors
    ///
    /// As [`options`](Self::options).
    pub(super) fn options_once(&self) -> Result<ConnectOptions, NatsError> {
        let options = ConnectOptions::new()
            .name(concat!("tidings ", env!("CARGO_PKG_VERSION")))
            .connection_timeout(CONNECT_LIMIT)
            .ping_interval(PING_EVERY)
            .client_capacity(WAITING_OUT)
            .subscription_capacity(WAITING_IN)
            .reconnect_delay_callback(|attempts| {
                let tenths = u32::try_from(attempts).unwrap_or(u32::MAX);
                (Duration::from_millis(100).saturating_mul(tenths)).min(RECONNECT_LONGEST)
            });
        let options = match &self.identity {
            NatsIdentity::Anonymous => options,
            NatsIdentity::Password { user, password } => {
                options.user_and_password(user.clone(), password.clone())
            }
            NatsIdentity::Token(token) => options.token(token.clone()),
            // The last line must end.
            NatsIdentity::Credentials(text) => options
                .credentials(&format!("{text}\n"))
                .map_err(NatsError::Credentials)?,
            NatsIdentity::Nkey(seed) if is_user_seed(seed) => options.nkey(seed.to_string()),
            NatsIdentity::Nkey(_) => return Err(NatsError::Nkey),
        };
        // A server may ask for TLS although its URL doesn't.
        let options = options.tls_client_config(self.tls()?);
        // Servers of the cluster that are found later must not be used without it.
        let needs_tls = self.addresses.iter().any(ServerAddr::tls_required);
        Ok(options.require_tls(needs_tls))
    }

    fn tls(&self) -> Result<ClientConfig, NatsError> {
        let roots = match &self.authority {
            Some(path) => certificates::authorities(path)?,
            // Without any, no certificate is accepted. A server without TLS needs none.
            None => certificates::system_authorities()
                .unwrap_or_else(|_| rustls::RootCertStore::empty()),
        };
        let builder = ClientConfig::builder_with_provider(certificates::provider());
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

/// The user that a URL names. The library ignores it.
fn user_of(address: &ServerAddr) -> Option<NatsIdentity> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let user = address.username().map(decode)?;
    Some(match address.password().map(decode) {
        Some(password) => NatsIdentity::Password { user, password },
        None => NatsIdentity::Token(user),
    })
}

/// With any other key, the connection would fail later.
fn is_user_seed(seed: &str) -> bool {
    let key = KeyPair::from_seed(seed);
    key.is_ok_and(|key| key.key_pair_type() == KeyPairType::User)
}

/// The hosts and ports, without passwords.
impl fmt::Display for NatsServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, address) in self.addresses.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}:{}", address.host(), address.port())?;
        }
        Ok(())
    }
}

impl fmt::Debug for NatsServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NatsServers({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

    fn servers(urls: &str) -> Result<String, String> {
        let servers = NatsServers::new(urls, NatsIdentity::Anonymous, None);
        let servers = servers.map_err(|error| error.to_string())?;
        assert_eq!(format!("{servers:?}"), format!("NatsServers({servers})"));
        Ok(servers.to_string())
    }

    #[test]
    fn servers_are_shown_without_passwords() {
        let shown = servers("nats://app:hunter2@a:4222, tls://b:5222\n c");
        assert_eq!(shown.as_deref(), Ok("a:4222, b:5222, c:4222"));
    }

    #[test]
    fn what_names_no_server_is_rejected_without_showing_it() {
        let many = "nats://a ".repeat(MOST_SERVERS + 1);
        for urls in [
            "",
            " , ",
            "http://a",
            "ws://a",
            "nats://",
            "nats://a, redis://app:hunter2@b",
            &many,
        ] {
            let error = servers(urls).expect_err(urls);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_user_in_the_urls_counts() {
        let identity = |urls: &str| {
            let servers = NatsServers::new(urls, NatsIdentity::Anonymous, None);
            servers.map(|servers| servers.identity)
        };
        let password = |user: &str, password: &str| NatsIdentity::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        let is = |urls, wanted| identity(urls).is_ok_and(|found| found == wanted);
        assert!(is("nats://a,b", NatsIdentity::Anonymous));
        assert!(is(
            "nats://u:p%40ss@a,nats://u:p%40ss@b,c",
            password("u", "p@ss")
        ));
        assert!(is(
            "nats://secret@a",
            NatsIdentity::Token("secret".to_owned())
        ));
        assert!(matches!(
            identity("nats://u:p@a,nats://u:q@b"),
            Err(NatsError::Users)
        ));
        let both = NatsServers::new("nats://u:p@a", NatsIdentity::Nkey(SEED.into()), None);
        assert!(matches!(both, Err(NatsError::TwoIdentities)));
    }

    #[test]
    fn an_identity_that_cannot_be_used_is_rejected_at_once() {
        let seed = SEED;
        let account = KeyPair::new_account().seed().expect("a seed");
        let with = |identity| NatsServers::new("nats://a", identity, None);
        assert!(with(NatsIdentity::Nkey(seed.into())).is_ok());
        for wrong in [&account, "", "SU", &seed[1..]] {
            let error = with(NatsIdentity::Nkey(wrong.into())).expect_err(wrong);
            assert!(matches!(error, NatsError::Nkey), "{error}");
        }
        let error = with(NatsIdentity::Credentials("hunter2".into())).expect_err("no JWT");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_rejected_at_once() {
        let missing = Some(PathBuf::from("/nonexistent/ca.pem"));
        let error = NatsServers::new("tls://a", NatsIdentity::Anonymous, missing);
        let error = error.expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");
    }
}
