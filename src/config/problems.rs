//! Settings that `serve` would refuse, and settings that may be mistakes.

use super::{ConfigError, ServeOptions, TicketSetting};
use crate::{auth::jwt::Tokens, runtime::loopback::is_loopback};

impl ServeOptions {
    /// The rules and keys that verify tokens; `None` if users are authenticated by other
    /// means only.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], also if no authentication is configured.
    pub fn tokens(&self) -> Result<Option<Tokens>, ConfigError> {
        let has_others = matches!(self.trust.user_header(), Ok(Some(_)))
            || self.trust.tickets == Some(TicketSetting::On);
        match self.jwt.tokens() {
            Err(ConfigError::NoAuthentication) if has_others => Ok(None),
            tokens => tokens.map(Some),
        }
    }

    /// All reasons for which `serve` would refuse to start.
    pub fn problems(&self) -> Vec<ConfigError> {
        let outcomes = [
            self.database.url().err(),
            self.database.direct_url().err(),
            self.database.replica_urls().err(),
            self.nats.servers().err(),
            self.trust.user_header().err(),
            self.tokens().err(),
            self.tls.certificate().err(),
        ];
        outcomes.into_iter().flatten().collect()
    }

    /// Possible mistakes, for the log.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(network) = self.trust.trusted_proxies.boundless() {
            warnings.push(format!(
                "TIDINGS_TRUSTED_PROXIES contains {network}, which is the whole internet: every \
                 client that reaches this server is trusted as a proxy; list only your own proxies"
            ));
        }
        let listen = self.bridge.listen;
        if let Ok(Some(header)) = self.trust.user_header()
            && !is_loopback(listen.ip())
        {
            warnings.push(format!(
                "the header {} names the user, and {listen} can be reached from other machines: \
                 the header is trusted only from TIDINGS_TRUSTED_PROXIES, but set up a firewall \
                 that lets only these proxies through",
                header.name
            ));
        }
        warnings
    }
}
