//! Who is asking: the user that a request's tokens name.

use std::time::{Duration, SystemTime};

use actix_web::{HttpRequest, http::header};

use crate::{
    notification::UserId,
    token::{Claimed, Tokens},
};

/// The cookie that carries a token where no header can be set.
pub const COOKIE: &str = "tidings_token";

/// How far the clocks of issuer and bridge may be apart. A token is good for
/// this long after its `exp`, and so is a stream that was opened with it.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// Who is asking, and for how long the answer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// When it expires, if it does.
    pub expires: Option<SystemTime>,
}

impl From<Claimed> for Identity {
    fn from(claimed: Claimed) -> Self {
        Self {
            user: claimed.user,
            expires: Some(claimed.expires),
        }
    }
}

/// Why a request is nobody's. The text is for the client, and says nothing of
/// the inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// No token at all.
    #[error(
        "this stream needs a token: send it as `Authorization: Bearer <JWT>` or as the cookie tidings_token"
    )]
    Missing,
    /// It was valid once.
    #[error("the token has expired: get a new one")]
    Expired,
    /// Wrong in any other way: signature, algorithm, form, claims.
    #[error(
        "the token is not valid here: it must be a JWT signed with HS256 that carries sub and exp"
    )]
    Invalid,
    /// Two tokens for two users.
    #[error("the request carries tokens of different users: send one")]
    Disagree,
    /// Not a text of 1 to 255 bytes.
    #[error("the user must be a text of 1 to 255 bytes")]
    User,
    /// Nobody can tell at the moment: what it takes is out of reach.
    #[error("it can't be told at the moment who you are: try again in some seconds")]
    Unavailable,
}

/// Finds out who is asking.
pub enum Authenticator {
    /// By what the request carries.
    Credentials(Box<Tokens>),
    /// Whoever the query names: `tidings dev` alone.
    Query,
}

impl Authenticator {
    /// The identity of a request.
    ///
    /// Every source that is present must be good, and all must agree: a bad one
    /// never falls back to another.
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub async fn identify(
        &self,
        request: &HttpRequest,
        query_user: Option<&str>,
    ) -> Result<Identity, Unidentified> {
        let tokens_of = match self {
            Self::Credentials(tokens) => tokens,
            Self::Query => {
                let user = query_user.ok_or(Unidentified::Missing)?;
                let user = UserId::parse(user).ok_or(Unidentified::User)?;
                return Ok(Identity {
                    user,
                    expires: None,
                });
            }
        };
        let mut found: Option<Identity> = None;
        for token in tokens(request)? {
            let identity = Identity::from(tokens_of.verify(&token).await?);
            found = Some(match found {
                None => identity,
                Some(other) => other.agree(identity)?,
            });
        }
        found.ok_or(Unidentified::Missing)
    }
}

impl Identity {
    /// Both, for as long as both hold.
    fn agree(self, other: Self) -> Result<Self, Unidentified> {
        if self.user != other.user {
            return Err(Unidentified::Disagree);
        }
        let expires = match (self.expires, other.expires) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        Ok(Self {
            user: self.user,
            expires,
        })
    }
}

/// Every token that a request carries.
fn tokens(request: &HttpRequest) -> Result<Vec<String>, Unidentified> {
    let mut tokens = Vec::new();
    for value in request.headers().get_all(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| Unidentified::Invalid)?;
        // RFC 9110, section 11.1: the scheme's case doesn't matter. Other
        // schemes are for somebody else, a proxy's password for instance.
        if let Some((scheme, token)) = value.split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            tokens.push(token.trim().to_owned());
        }
    }
    let cookies = request.cookies().map_err(|_| Unidentified::Invalid)?;
    tokens.extend(
        cookies
            .iter()
            .filter(|cookie| cookie.name() == COOKIE)
            .map(|cookie| cookie.value().to_owned()),
    );
    Ok(tokens)
}
