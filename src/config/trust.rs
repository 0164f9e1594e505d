//! What of a request is believed.

use std::str::FromStr;

use actix_web::http::header::{self, HeaderName};
use clap::{Args, ValueEnum};

use super::ConfigError;
use crate::auth::{
    client_addr::Proxies, cookie::CookieName, origin::Origins, user_header::UserHeader,
};

/// What of a request is believed.
#[derive(Clone, Debug, Args)]
pub struct TrustOptions {
    /// The proxies in front, as addresses and networks with commas between them
    /// (10.0.0.5,10.1.0.0/16): their X-Forwarded-For tells whose request it is, and
    /// their X-Forwarded-Proto or Forwarded whether it came by http or https
    #[arg(
        long,
        env = "TIDINGS_TRUSTED_PROXIES",
        default_value = "",
        hide_default_value = true
    )]
    pub trusted_proxies: Proxies,
    /// The header in which a trusted proxy names the user whom it has
    /// authenticated (X-User-Id); it must remove what clients send under that
    /// name
    #[arg(long, env = "TIDINGS_TRUSTED_USER_HEADER")]
    pub trusted_user_header: Option<UserHeaderName>,
    /// The cookie that carries a token
    #[arg(long, env = "TIDINGS_COOKIE_NAME", default_value = "tidings_token")]
    pub cookie_name: CookieName,
    /// Whether `?ticket=` opens streams; on also where nothing else lets users
    /// in; default: where something else does too
    #[arg(long, env = "TIDINGS_TICKETS")]
    pub tickets: Option<Tickets>,
    /// The origins whose pages may read streams with the user's cookie, exact
    /// and with commas between them (`https://app.example.org`, or of an app or
    /// extension `capacitor://localhost`, `chrome-extension://…`); pages of the
    /// stream's own origin always may
    #[arg(
        long,
        env = "TIDINGS_CORS_ORIGINS",
        default_value = "",
        hide_default_value = true
    )]
    pub cors_origins: Origins,
}

/// Whether tickets open streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tickets {
    /// They do, and need nobody else to let users in.
    On,
    /// They don't.
    Off,
}

/// The name of a header that names users. Empty is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserHeaderName(Option<HeaderName>);

impl FromStr for UserHeaderName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let name = HeaderName::from_str(text)
            .map_err(|_| "it is no name of a header, such as X-User-Id".to_owned())?;
        // What clients and proxies send for other reasons would be taken for a name.
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
            return Err("that header has another meaning: take X-User-Id, for instance".to_owned());
        }
        Ok(Self(Some(name)))
    }
}

impl TrustOptions {
    /// The header that names the user, and who may set it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], if nobody may.
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
