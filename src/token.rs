//! Tokens: JWTs (RFC 7519) that name a user, signed by the application.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind,
    get_current_timestamp,
};
use serde::{Deserialize, Serialize};

use tokio::time::Instant;

use crate::{
    identity::{Identity, LEEWAY, Unidentified},
    notification::UserId,
};

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

/// Whom a good token names, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// The user.
    pub user: UserId,
    /// The token's `exp`.
    pub expires: SystemTime,
}

/// Seconds count whole, and the last one of the leeway is still good.
const LAST_SECOND: Duration = Duration::from_secs(1);

/// Who claims to have longer than this has it: the stream ends much earlier.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl From<Claimed> for Identity {
    /// It expires when the same token would no longer be accepted.
    fn from(claimed: Claimed) -> Self {
        let end = claimed.expires + LEEWAY + LAST_SECOND;
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        Self {
            expires: Some(Instant::now() + left.min(LONGEST)),
            ..claimed.user.into()
        }
    }
}

/// Tells good tokens from bad ones.
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

impl Tokens {
    /// Tokens signed with this secret.
    pub fn signed_with(secret: &JwtSecret) -> Self {
        // The algorithm comes from here, never from the token.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "sub"]);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        // Audiences are not configurable yet; a token that names one is still
        // its user's.
        validation.validate_aud = false;
        Self {
            key: DecodingKey::from_secret(secret.0.as_bytes()),
            validation,
        }
    }

    /// Checks a token.
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub async fn verify(&self, token: &str) -> Result<Claimed, Unidentified> {
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Unidentified::Expired,
            _ => Unidentified::Invalid,
        })?;
        let Claims { sub, exp } = claims.claims;
        let furthest = SystemTime::now() + LONGEST;
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(exp));
        Ok(Claimed {
            user: UserId::parse(&sub).ok_or(Unidentified::User)?,
            expires: expires.unwrap_or(furthest).min(furthest),
        })
    }
}
