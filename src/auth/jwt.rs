//! Tokens: JWTs (RFC 7519) that name a user, signed by the application or by its identity
//! provider.

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
        jwks::Jwks,
        jwt_key::{Accepted, Key, KeyKind},
    },
    domain::{
        identity::{Identity, LEEWAY, MOST_TOKEN_BYTES, Unidentified},
        notification::UserId,
        topic::{Topic, TopicChoice},
    },
};

/// The claim that names the user unless another one is configured.
pub const USER_CLAIM: &str = "sub";

/// The claim that grants topics.
pub const TOPICS_CLAIM: &str = "topics";

/// The requirements that a token must meet, whichever key signed it.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The algorithms with which it may be signed.
    pub accepted: Accepted,
    /// The accepted issuers (`iss`); any if empty.
    pub issuers: Vec<String>,
    /// The accepted audiences (`aud`); any if empty.
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
        // If no audience is configured, a token that names one is still valid.
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

/// Signs a token for `user` that is valid for `seconds`, with the first algorithm that
/// the rules accept for a secret.
///
/// # Errors
///
/// If the rules accept no algorithm for a secret, or the library fails.
pub fn sign(
    secret: &JwtSecret,
    rules: &Rules,
    user: &UserId,
    seconds: u64,
) -> Result<String, jsonwebtoken::errors::Error> {
    let algorithm = rules.accepted.of(KeyKind::Secret).first().copied();
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

/// What a valid token contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenClaims {
    pub user: UserId,
    /// The token's `exp`.
    pub expires: SystemTime,
    /// The topics that it grants, in the claim `topics`.
    pub topics: Arc<[Topic]>,
}

/// Validation compares whole seconds, and still accepts the last second of the leeway.
const LAST_SECOND: Duration = Duration::from_secs(1);

/// A longer lifetime is shortened to this; streams end much earlier anyway.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl From<TokenClaims> for Identity {
    /// The identity expires when the same token would no longer be accepted.
    fn from(claimed: TokenClaims) -> Self {
        let left = claimed.expires.duration_since(SystemTime::now());
        // Part of the leeway may have passed.
        let left = match left {
            Ok(left) => left.min(LONGEST) + LEEWAY + LAST_SECOND,
            Err(past) => (LEEWAY + LAST_SECOND).saturating_sub(past.duration()),
        };
        Self {
            expires: Some(Instant::now() + left),
            topics: claimed.topics,
            ..claimed.user.into()
        }
    }
}

/// The configured keys.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Shared with the application.
    pub secrets: Vec<Key>,
    /// Keys of whoever signs users' tokens, such as an identity provider.
    pub public: Vec<Key>,
}

impl Keys {
    /// All keys, in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.secrets.iter().chain(&self.public)
    }
}

/// Verifies tokens.
pub struct Tokens {
    keys: ArcSwap<Keys>,
    key_set: Option<Jwks>,
    validation: Validation,
    user_claim: String,
}

/// Reads the claim that grants topics: an array of at most
/// [`MOST_GRANTED`](TopicChoice::MOST_GRANTED) names. A name is compared as a whole and is no
/// pattern.
fn topics(claim: &Value) -> Option<Arc<[Topic]>> {
    let names = claim.as_array()?;
    if names.len() > TopicChoice::MOST_GRANTED {
        return None;
    }
    let topic = |name: &Value| Topic::parse(name.as_str()?);
    names.iter().map(topic).collect()
}

impl Tokens {
    /// Accepts tokens that are signed with one of `keys`, or with a key of the set.
    pub fn new(keys: Keys, key_set: Option<Jwks>, rules: &Rules) -> Self {
        Self {
            keys: ArcSwap::from_pointee(keys),
            key_set,
            validation: rules.validation(),
            user_claim: rules.user_claim.clone(),
        }
    }

    /// The current keys.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    /// Replaces the keys. Streams that a token opened stay open, even if it would no
    /// longer be accepted.
    pub fn replace_keys(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
    }

    pub fn key_set(&self) -> Option<&Jwks> {
        self.key_set.as_ref()
    }

    /// A probable mistake in the configuration, for the log.
    pub fn warning(&self) -> Option<&'static str> {
        let takes_others = self.key_set.is_some() && !self.validation.validate_aud;
        takes_others.then_some(
            "TIDINGS_JWKS_URL is set but TIDINGS_JWT_AUDIENCE is not: every token that this \
             provider signs is accepted, including those issued for other applications",
        )
    }

    /// Verifies a token. This may wait for the key set to be fetched.
    pub async fn verify(&self, token: &str) -> Result<TokenClaims, Unidentified> {
        if token.len() > MOST_TOKEN_BYTES {
            return Err(Unidentified::TooLong);
        }
        let header = decode_header(token).map_err(|_| Unidentified::Invalid)?;
        // A token with critical extensions that are not understood must be rejected (RFC
        // 7515, section 4.1.11), and none are understood here.
        if header.crit.is_some() {
            return Err(Unidentified::Invalid);
        }
        // The header only selects one of the algorithms that the configuration allows for
        // a key; it can't add one.
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

    /// The claims of the token, if one of the keys signed it.
    fn try_each<'k>(
        &self,
        token: &str,
        algorithm: Algorithm,
        keys: impl Iterator<Item = &'k Key>,
    ) -> Result<Option<TokenClaims>, Unidentified> {
        let mut validation = self.validation.clone();
        validation.algorithms = vec![algorithm];
        for key in keys {
            let decoded =
                jsonwebtoken::decode::<Map<String, Value>>(token, key.decoding(), &validation);
            // The claims are validated only if the signature is good.
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

    fn claimed(&self, claims: &Map<String, Value>) -> Result<TokenClaims, Unidentified> {
        let user = match claims.get(&self.user_claim) {
            Some(Value::String(text)) => UserId::parse(text).ok_or(Unidentified::User)?,
            // The id of a user that is a number is its decimal text. `sub` is a string
            // (RFC 7519).
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
        let topics = match claims.get(TOPICS_CLAIM) {
            None => Arc::default(),
            Some(claim) => topics(claim).ok_or(Unidentified::Topics)?,
        };
        Ok(TokenClaims {
            user,
            expires,
            topics,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_grants_a_short_list_of_whole_names() {
        let granted = |claim| {
            let topics = topics(&claim)?;
            Some(topics.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let most: Vec<_> = (0..TopicChoice::MOST_GRANTED)
            .map(|number| format!("team:{number}"))
            .collect();
        for names in [vec![], vec!["team:*".to_owned()], most.clone()] {
            assert_eq!(granted(json!(names)), Some(names));
        }
        let one_more = [most, vec!["x".to_owned()]].concat();
        for claim in [
            json!(one_more),
            json!("team:7"),
            json!([7]),
            json!([["team:7"]]),
            json!([""]),
            json!(["team:7", "a\n"]),
            json!({"team:7": true}),
            json!(null),
        ] {
            assert_eq!(granted(claim.clone()), None, "{claim}");
        }
    }
}
