//! Who is asking: the user that a request's tokens name.

use std::{fmt, str::FromStr};

use actix_web::{HttpRequest, http::header};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind,
    get_current_timestamp,
};
use serde::{Deserialize, Serialize};

use crate::notification::UserId;

/// The cookie that carries a token where no header can be set.
pub const COOKIE: &str = "tidings_token";

/// How far the clocks of issuer and bridge may be apart, in seconds.
const LEEWAY: u64 = 30;

/// A shared secret for HS256. Its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSecret(String);

impl JwtSecret {
    /// RFC 7518, section 3.2: a key at least as long as the hash.
    pub const MIN_BYTES: usize = 32;
}

impl FromStr for JwtSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() < Self::MIN_BYTES {
            return Err(format!(
                "it has {} bytes, and HS256 needs {} at least: make one with `openssl rand -hex 32`",
                text.len(),
                Self::MIN_BYTES
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for JwtSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtSecret(hidden)")
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    /// Seconds since 1970.
    exp: u64,
}

/// Signs a token for `user` that is valid for so many seconds.
///
/// # Errors
///
/// What the library says; none is known for HS256.
pub fn sign(
    secret: &JwtSecret,
    user: &UserId,
    seconds: u64,
) -> Result<String, jsonwebtoken::errors::Error> {
    let exp = get_current_timestamp().saturating_add(seconds);
    let claims = Claims {
        sub: user.to_string(),
        exp,
    };
    jsonwebtoken::encode(
        &Header::default(),
        &claims,
        &EncodingKey::from_secret(secret.0.as_bytes()),
    )
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
}

/// Finds out who is asking.
pub struct Identity {
    key: Option<(DecodingKey, Validation)>,
    query: QueryUser,
}

/// Whether `?user=` is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryUser {
    /// Only in `tidings dev`.
    Believed,
    /// Everywhere else.
    Ignored,
}

impl Identity {
    /// Tokens signed with this secret.
    pub fn jwt(secret: &JwtSecret) -> Self {
        // The algorithm comes from here, never from the token.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        // Audiences are not configurable yet; a token that names one is still
        // its user's.
        validation.validate_aud = false;
        let key = DecodingKey::from_secret(secret.0.as_bytes());
        Self {
            key: Some((key, validation)),
            query: QueryUser::Ignored,
        }
    }

    /// Whoever the query names. For `tidings dev` alone.
    pub fn query() -> Self {
        Self {
            key: None,
            query: QueryUser::Believed,
        }
    }

    /// The user of a request.
    ///
    /// Every source that is present must be good, and all must agree: a bad one
    /// never falls back to another.
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub fn of(
        &self,
        request: &HttpRequest,
        query_user: Option<&str>,
    ) -> Result<UserId, Unidentified> {
        if self.query == QueryUser::Believed {
            let user = query_user.ok_or(Unidentified::Missing)?;
            return UserId::parse(user).ok_or(Unidentified::User);
        }
        let mut found: Option<UserId> = None;
        for token in tokens(request)? {
            let user = self.verify(&token)?;
            match &found {
                Some(other) if *other != user => return Err(Unidentified::Disagree),
                _ => found = Some(user),
            }
        }
        found.ok_or(Unidentified::Missing)
    }

    fn verify(&self, token: &str) -> Result<UserId, Unidentified> {
        let (key, validation) = self.key.as_ref().ok_or(Unidentified::Invalid)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, key, validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Unidentified::Expired,
            _ => Unidentified::Invalid,
        })?;
        UserId::parse(&claims.claims.sub).ok_or(Unidentified::User)
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
