//! Tokens: JWTs (RFC 7519) that name a user, signed by the application or by
//! what signs its users in.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use jsonwebtoken::{
    Algorithm, Header, Validation, decode_header, errors::ErrorKind, get_current_timestamp,
};
use serde_json::{Map, Value};
use tokio::time::Instant;

pub use crate::auth::jwt_key::JwtSecret;
use crate::{
    auth::{
        jwks::KeySet,
        jwt_key::{Accepted, Key, Kind},
    },
    domain::{
        identity::{Identity, LEEWAY, Unidentified},
        notification::UserId,
    },
};

/// A token may have at most this many bytes: those of the field have one or
/// two thousand, and nothing is done for a longer one.
pub const MAX_BYTES: usize = 8 << 10;

/// The claim that names the user unless another one is configured.
pub const USER_CLAIM: &str = "sub";

/// What a good token is, whatever key signed it.
#[derive(Clone, Debug)]
pub struct Rules {
    /// With what it may be signed.
    pub accepted: Accepted,
    /// One of these issued it (`iss`); if there are none, anybody.
    pub issuers: Vec<String>,
    /// It is meant for one of these (`aud`); if there are none, it may be meant
    /// for anybody.
    pub audiences: Vec<String>,
    /// The claim that names the user.
    pub user_claim: String,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            accepted: Accepted::default(),
            issuers: Vec::new(),
            audiences: Vec::new(),
            user_claim: USER_CLAIM.to_owned(),
        }
    }
}

impl Rules {
    fn validation(&self) -> Validation {
        let mut required = vec!["exp"];
        let mut validation = Validation::default();
        if !self.issuers.is_empty() {
            required.push("iss");
            validation.set_issuer(&self.issuers);
        }
        // Where no audience is configured, a token that names one is still its
        // user's.
        validation.validate_aud = !self.audiences.is_empty();
        if validation.validate_aud {
            required.push("aud");
            validation.set_audience(&self.audiences);
        }
        validation.set_required_spec_claims(&required);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation
    }
}

/// Signs a token for `user` that is valid for so many seconds, with the first
/// algorithm of a secret that the rules accept.
///
/// # Errors
///
/// What the library says; it signs with nothing but a secret.
pub fn sign(
    secret: &JwtSecret,
    rules: &Rules,
    user: &UserId,
    seconds: u64,
) -> Result<String, jsonwebtoken::errors::Error> {
    let algorithm = rules.accepted.of(Kind::Secret).first().copied();
    let algorithm = algorithm.ok_or(ErrorKind::InvalidAlgorithm)?;
    let exp = get_current_timestamp().saturating_add(seconds);
    let mut claims = Map::new();
    claims.insert(rules.user_claim.clone(), user.as_str().into());
    claims.insert("exp".to_owned(), exp.into());
    let named = [("iss", &rules.issuers), ("aud", &rules.audiences)];
    for (claim, names) in named {
        claims.extend(
            names
                .first()
                .map(|name| (claim.to_owned(), name.as_str().into())),
        );
    }
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &secret.signing())
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
        let left = claimed.expires.duration_since(SystemTime::now());
        // Some time of the leeway may have passed.
        let left = match left {
            Ok(left) => left.min(LONGEST) + LEEWAY + LAST_SECOND,
            Err(past) => (LEEWAY + LAST_SECOND).saturating_sub(past.duration()),
        };
        Self {
            expires: Some(Instant::now() + left),
            ..claimed.user.into()
        }
    }
}

/// The keys that were configured.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Shared with the application.
    pub secrets: Vec<Key>,
    /// Of whoever signs users' tokens.
    pub public: Vec<Key>,
}

impl Keys {
    /// All of them, in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.secrets.iter().chain(&self.public)
    }
}

/// Tells good tokens from bad ones.
pub struct Tokens {
    keys: ArcSwap<Keys>,
    key_set: Option<KeySet>,
    validation: Validation,
    user_claim: String,
}

impl Tokens {
    /// Tokens that are signed with one of the keys, or with one of the set.
    pub fn new(keys: Keys, key_set: Option<KeySet>, rules: &Rules) -> Self {
        Self {
            keys: ArcSwap::from_pointee(keys),
            key_set,
            validation: rules.validation(),
            user_claim: rules.user_claim.clone(),
        }
    }

    /// The keys that are used now.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    /// Uses these keys from now on. Streams that a token opened stay, also if it
    /// would no longer be accepted.
    pub fn replace_keys(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    /// The set of keys, if there is one.
    pub fn key_set(&self) -> Option<&KeySet> {
        self.key_set.as_ref()
    }

    /// What may be a mistake, for the log.
    pub fn warning(&self) -> Option<&'static str> {
        let takes_others = self.key_set.is_some() && !self.validation.validate_aud;
        takes_others.then_some(
            "TIDINGS_JWKS_URL is set and TIDINGS_JWT_AUDIENCE is not: every token that this \
             provider signs is taken, also those that are meant for other applications",
        )
    }

    /// Checks a token. It may wait for the set of keys to be fetched.
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub async fn verify(&self, token: &str) -> Result<Claimed, Unidentified> {
        if token.len() > MAX_BYTES {
            return Err(Unidentified::Invalid);
        }
        let header = decode_header(token).map_err(|_| Unidentified::Invalid)?;
        // Whoever doesn't understand what is marked as critical must refuse
        // (RFC 7515, section 4.1.11), and nothing of it is understood here.
        if header.crit.is_some() {
            return Err(Unidentified::Invalid);
        }
        // The header says which of the algorithms it is that a key may be used
        // with by configuration; it can't add one.
        let algorithm = header.alg;
        let keys = self.keys();
        let own = keys.iter().filter(|key| key.serves(algorithm));
        if let Some(claimed) = self.try_each(token, algorithm, own)? {
            return Ok(claimed);
        }
        let Some(key_set) = self.key_set.as_ref().filter(|set| set.may_serve(algorithm)) else {
            return Err(Unidentified::Invalid);
        };
        let found = key_set.find(header.kid.as_deref(), algorithm).await;
        let found = found.map_err(|_| Unidentified::Unavailable)?;
        let claimed = self.try_each(token, algorithm, found.iter().map(AsRef::as_ref))?;
        claimed.ok_or(Unidentified::Invalid)
    }

    /// What the token says, if one of the keys signed it.
    fn try_each<'k>(
        &self,
        token: &str,
        algorithm: Algorithm,
        keys: impl Iterator<Item = &'k Key>,
    ) -> Result<Option<Claimed>, Unidentified> {
        let mut validation = self.validation.clone();
        validation.algorithms = vec![algorithm];
        for key in keys {
            let decoded =
                jsonwebtoken::decode::<Map<String, Value>>(token, key.decoding(), &validation);
            // The claims are looked at once the signature is good.
            match decoded {
                Ok(decoded) => return self.claimed(&decoded.claims).map(Some),
                Err(error) => match error.kind() {
                    ErrorKind::InvalidSignature => {}
                    ErrorKind::ExpiredSignature => return Err(Unidentified::Expired),
                    _ => return Err(Unidentified::Invalid),
                },
            }
        }
        Ok(None)
    }

    fn claimed(&self, claims: &Map<String, Value>) -> Result<Claimed, Unidentified> {
        let user = match claims.get(&self.user_claim) {
            Some(Value::String(text)) => UserId::parse(text).ok_or(Unidentified::User)?,
            // Users that are numbers are known by their decimal text. `sub` is
            // a string by RFC 7519.
            Some(Value::Number(number)) if self.user_claim != USER_CLAIM && !number.is_f64() => {
                UserId::parse(&number.to_string()).ok_or(Unidentified::User)?
            }
            _ => return Err(Unidentified::Invalid),
        };
        let expires = claims
            .get("exp")
            .and_then(Value::as_f64)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|since| UNIX_EPOCH.checked_add(since))
            .ok_or(Unidentified::Invalid)?;
        Ok(Claimed { user, expires })
    }
}
