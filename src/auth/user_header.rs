//! A header in which a trusted proxy names the authenticated user.

use actix_web::{
    HttpRequest,
    http::header::{HeaderName, HeaderValue},
};

use crate::{auth::client_addr::Proxies, domain::notification::UserId};

/// Why the header is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderRejection {
    /// The peer is not a trusted proxy.
    Spoofed,
    /// The header occurs twice, or is not a text of 1 to 255 bytes.
    Malformed,
}

#[derive(Clone, Debug)]
pub struct UserHeader {
    pub name: HeaderName,
    /// The proxies that may set it.
    pub proxies: Proxies,
}

impl UserHeader {
    /// The user in the header; `None` without the header.
    pub fn user(&self, request: &HttpRequest) -> Result<Option<UserId>, HeaderRejection> {
        let mut values = request.headers().get_all(&self.name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        // Only the peer's address counts, not the address that it forwards.
        if !self.proxies.handed_over(request) {
            return Err(HeaderRejection::Spoofed);
        }
        match (user(value), values.next()) {
            (Some(user), None) => Ok(Some(user)),
            _ => Err(HeaderRejection::Malformed),
        }
    }
}

fn user(value: &HeaderValue) -> Option<UserId> {
    UserId::parse(std::str::from_utf8(value.as_bytes()).ok()?)
}
