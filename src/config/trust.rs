//! The settings for what to trust in a request.

use std::str::FromStr;

use actix_web::http::header::{self, HeaderName};
use clap::{Args, ValueEnum};

use super::ConfigError;
use crate::auth::{client_addr::Proxies, cookie::CookieName, user_header::UserHeader};

#[derive(Clone, Debug, Args)]
pub struct TrustOptions {
    /// Trusted proxies, as addresses and networks separated by commas
    /// (10.0.0.5,10.1.0.0/16): their X-Forwarded-For names the client, and their
    /// X-Forwarded-Proto or Forwarded says whether it uses http or https
    #[arg(
        long,
        env = "TIDINGS_TRUSTED_PROXIES",
        default_value = "",
        hide_default_value = true
    )]
    pub trusted_proxies: Proxies,
    /// Header in which a trusted proxy names the user that it has authenticated
    /// (X-User-Id); the proxy must remove this header from clients' requests
    #[arg(long, env = "TIDINGS_TRUSTED_USER_HEADER")]
    pub trusted_user_header: Option<UserHeaderName>,
    /// Cookie that contains a token
    #[arg(long, env = "TIDINGS_COOKIE_NAME", default_value = "tidings_token")]
    pub cookie_name: CookieName,
    /// Whether `?ticket=` opens streams; on: even if no other authentication is
    /// configured; default: only if another one is
    #[arg(long, env = "TIDINGS_TICKETS")]
    pub tickets: Option<TicketSetting>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TicketSetting {
    /// Tickets open streams, even if no other authentication is configured.
    On,
    /// Tickets are rejected.
    Off,
}

/// The name of the header that names the user. Empty means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserHeaderName(Option<HeaderName>);

impl FromStr for UserHeaderName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let name = HeaderName::from_str(text)
            .map_err(|_| "it is not the name of a header, such as X-User-Id".to_owned())?;
        // What clients and proxies send in these headers for other reasons would be taken
        // for a user.
        let taken = [
            header::ACCEPT,
            header::AUTHORIZATION,
            header::CONNECTION,
            header::COOKIE,
            header::FORWARDED,
            header::HOST,
            header::ORIGIN,
        ];
        let taken_too = [
            "last-event-id",
            "sec-fetch-site",
            "x-forwarded-for",
            "x-forwarded-proto",
        ];
        if taken.contains(&name) || taken_too.contains(&name.as_str()) {
            return Err("that header has another meaning: use X-User-Id, for example".to_owned());
        }
        Ok(Self(Some(name)))
    }
}

impl TrustOptions {
    /// The header that names the user, and the proxies that may set it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], if no proxy may.
    pub fn user_header(&self) -> Result<Option<UserHeader>, ConfigError> {
        let Some(UserHeaderName(Some(name))) = &self.trusted_user_header else {
            return Ok(None);
        };
        if self.trusted_proxies.is_empty() {
            return Err(ConfigError::NoProxies);
        }
        Ok(Some(UserHeader {
            name: name.clone(),
            proxies: self.trusted_proxies.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_the_bridge_reads_for_another_reason_names_no_user() {
        for name in [
            "Accept",
            "Authorization",
            "Connection",
            "Cookie",
            "Forwarded",
            "Host",
            "Last-Event-ID",
            "Origin",
            "Sec-Fetch-Site",
            "X-Forwarded-For",
            "x-forwarded-PROTO",
        ] {
            let error = name.parse::<UserHeaderName>().expect_err(name);
            assert!(error.contains("X-User-Id"), "{name}: {error}");
        }
        for name in ["X-User-Id", "Remote-User", ""] {
            assert!(name.parse::<UserHeaderName>().is_ok(), "{name}");
        }
        assert!("X User".parse::<UserHeaderName>().is_err());
    }
}
