//! A header that names the user, set by a proxy which knows who it is.

use actix_web::{
    HttpRequest,
    http::header::{HeaderName, HeaderValue},
};

use crate::{auth::client_addr::Proxies, domain::notification::UserId};

/// Why such a header is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disbelief {
    /// It came from somebody who is no trusted proxy.
    Spoofed,
    /// It is there twice, or is no text of 1 to 255 bytes.
    Malformed,
}

/// The header, and who may set it.
#[derive(Clone, Debug)]
pub struct UserHeader {
    /// The header.
    pub name: HeaderName,
    /// Who may set it.
    pub proxies: Proxies,
}

impl UserHeader {
    /// The user that it names, if it is there.
    ///
    /// # Errors
    ///
    /// [`Disbelief`].
    pub fn user(&self, request: &HttpRequest) -> Result<Option<UserId>, Disbelief> {
        let mut values = request.headers().get_all(&self.name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        // The peer itself, whatever address it says the request came from.
        if !self.proxies.handed_over(request) {
            return Err(Disbelief::Spoofed);
        }
        match (user(value), values.next()) {
            (Some(user), None) => Ok(Some(user)),
            _ => Err(Disbelief::Malformed),
        }
    }
}

fn user(value: &HeaderValue) -> Option<UserId> {
    UserId::parse(std::str::from_utf8(value.as_bytes()).ok()?)
}
