//! The settings for verifying tokens.

use std::path::PathBuf;

use clap::Args;
use jsonwebtoken::Algorithm;

use super::{
    ConfigError,
    secret::{self, Secret},
};
use crate::auth::{
    jwks::Jwks,
    jwt::{JwtSecret, Keys, Rules, Tokens},
    jwt_key::{Accepted, Key, KeyKind},
};

/// Maximum number of secrets, and of public keys. Two are enough to replace one by
/// another; each is tried on each token.
const MAX_KEYS: usize = 10;

pub(super) const SECRET: &str = "TIDINGS_JWT_SECRET";
const PUBLIC_KEY: &str = "TIDINGS_JWT_PUBLIC_KEY";
const KEY_SET: &str = "TIDINGS_JWKS_URL";
const ALGORITHMS: &str = "TIDINGS_JWT_ALGORITHMS";

/// The secrets that the bridge and the application share.
#[derive(Clone, Debug, Args)]
pub struct SecretOptions {
    /// Secrets that sign users' tokens, one per line (at least 32 bytes; 48 for HS384, 64
    /// for HS512); `tidings token` uses the first
    #[arg(
        long,
        env = "TIDINGS_JWT_SECRET",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub jwt_secret: Option<Secret>,
    /// File that contains `TIDINGS_JWT_SECRET`
    #[arg(long, env = "TIDINGS_JWT_SECRET_FILE")]
    pub jwt_secret_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct JwtOptions {
    #[command(flatten)]
    pub secrets: SecretOptions,
    /// Public keys that verify users' tokens, as PEM, one after the other: RSA, P-256,
    /// P-384 or Ed25519
    #[arg(
        long,
        env = "TIDINGS_JWT_PUBLIC_KEY",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub jwt_public_key: Option<Secret>,
    /// File that contains `TIDINGS_JWT_PUBLIC_KEY`
    #[arg(long, env = "TIDINGS_JWT_PUBLIC_KEY_FILE")]
    pub jwt_public_key_file: Option<PathBuf>,
    /// URL where an identity provider publishes its keys as a JSON Web Key Set
    /// (https://…/.well-known/jwks.json)
    #[arg(long, env = "TIDINGS_JWKS_URL", hide_env_values = true)]
    pub jwks_url: Option<Secret>,
    #[command(flatten)]
    pub rules: RuleOptions,
}

/// What a token must satisfy, whatever key signed it.
#[derive(Clone, Debug, Args)]
pub struct RuleOptions {
    /// Accepted signature algorithms, separated by commas; default: the algorithm that
    /// the key names, otherwise HS256, RS256, ES256, ES384 or EdDSA, depending on the
    /// kind of key
    #[arg(long, env = "TIDINGS_JWT_ALGORITHMS", value_delimiter = ',', value_parser = algorithm)]
    pub jwt_algorithms: Vec<Algorithm>,
    /// Accepted issuers, separated by commas: a token's `iss` must be one of them;
    /// default: any issuer whose key is configured
    #[arg(long, env = "TIDINGS_JWT_ISSUER", value_delimiter = ',', value_parser = name)]
    pub jwt_issuer: Vec<String>,
    /// Accepted audiences, separated by commas: a token's `aud` must be or contain one of
    /// them; default: not checked
    #[arg(long, env = "TIDINGS_JWT_AUDIENCE", value_delimiter = ',', value_parser = name)]
    pub jwt_audience: Vec<String>,
    /// Claim that names the user: a string or, except for sub, an integer
    #[arg(long, env = "TIDINGS_JWT_USER_CLAIM", default_value = "sub", value_parser = user_claim)]
    pub jwt_user_claim: String,
}

impl RuleOptions {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            accepted: Accepted::only(&self.jwt_algorithms),
            issuers: self.jwt_issuer.clone(),
            audiences: self.jwt_audience.clone(),
            user_claim: self.jwt_user_claim.clone(),
        }
    }
}

impl SecretOptions {
    /// The secrets without surrounding white space; empty if none is configured.
    pub(super) fn secrets(&self) -> Result<Vec<JwtSecret>, ConfigError> {
        let (value, file) = (&self.jwt_secret, &self.jwt_secret_file);
        let Some(given) = secret::given(SECRET, value.as_ref(), file.as_deref())? else {
            return Ok(Vec::new());
        };
        let lines = given.reveal().lines().map(str::trim);
        let secrets: Result<Vec<JwtSecret>, String> = lines
            .filter(|line| !line.is_empty())
            .map(str::parse)
            .collect();
        some(SECRET, secrets.map_err(|reason| unusable(SECRET, reason))?)
    }
}

impl JwtOptions {
    /// The rules and keys that verify tokens.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], also if nothing is configured: nothing is accepted by default.
    pub fn tokens(&self) -> Result<Tokens, ConfigError> {
        let rules = self.rules.rules();
        let keys = Keys {
            secrets: self.secret_keys()?,
            public: self.public_keys()?,
        };
        let key_set = match &self.jwks_url {
            Some(url) => {
                let url = url
                    .reveal()
                    .trim()
                    .parse()
                    .map_err(|reason| unusable(KEY_SET, reason))?;
                Some(Jwks::new(url, rules.accepted.clone()))
            }
            None => None,
        };
        if keys.iter().next().is_none() && key_set.is_none() {
            return Err(ConfigError::NoAuthentication);
        }
        self.check(&keys, key_set.as_ref())?;
        Ok(Tokens::new(keys, key_set, &rules))
    }

    /// The secrets, read from their file if they are in one.
    pub fn secret_keys(&self) -> Result<Vec<Key>, ConfigError> {
        let accepted = self.rules.rules().accepted;
        let secrets = self.secrets.secrets()?;
        let keys = secrets
            .iter()
            .map(|secret| Key::of_secret(secret, &accepted));
        let keys: Result<_, String> = keys.collect();
        keys.map_err(|reason| unusable(SECRET, reason))
    }

    /// The public keys, read from their file if they are in one.
    pub fn public_keys(&self) -> Result<Vec<Key>, ConfigError> {
        let accepted = self.rules.rules().accepted;
        let (value, file) = (&self.jwt_public_key, &self.jwt_public_key_file);
        let Some(given) = secret::given(PUBLIC_KEY, value.as_ref(), file.as_deref())? else {
            return Ok(Vec::new());
        };
        let blocks = blocks(&given)?;
        let keys = blocks.iter().map(|block| Key::of_pem(block, &accepted));
        let keys: Result<_, String> = keys.collect();
        keys.map_err(|reason| unusable(PUBLIC_KEY, reason))
    }

    /// Checks that each configured algorithm has a key, and each key an algorithm.
    pub fn check(&self, keys: &Keys, key_set: Option<&Jwks>) -> Result<(), ConfigError> {
        every_algorithm_has_a_key(&self.rules.rules().accepted, keys, key_set)?;
        every_key_has_an_algorithm(keys)
    }
}

/// An algorithm that no token can be signed with is a mistake.
fn every_algorithm_has_a_key(
    accepted: &Accepted,
    keys: &Keys,
    key_set: Option<&Jwks>,
) -> Result<(), ConfigError> {
    for &algorithm in accepted.configured() {
        let has_key = keys.iter().any(|key| key.serves(algorithm))
            || key_set.is_some_and(|set| set.may_serve(algorithm));
        if !has_key {
            let needed = KeyKind::of(algorithm).map_or_else(String::new, |kind| kind.to_string());
            return Err(unusable(
                ALGORITHMS,
                format!(
                    "{algorithm:?} needs {needed}, and none is configured: set {SECRET}, \
                     {PUBLIC_KEY} or {KEY_SET}, or remove the algorithm"
                ),
            ));
        }
    }
    Ok(())
}

fn every_key_has_an_algorithm(keys: &Keys) -> Result<(), ConfigError> {
    match keys.iter().find(|key| !key.is_used()) {
        None => Ok(()),
        Some(key) => Err(unusable(
            ALGORITHMS,
            format!(
                "it contains no algorithm for {}, which is configured: add one of {:?}, or remove \
                 the key",
                key.kind(),
                key.kind().algorithms()
            ),
        )),
    }
}

/// The blocks of PEM. Environments that can't hold line breaks use `\n`.
fn blocks(given: &Secret) -> Result<Vec<String>, ConfigError> {
    const BEGIN: &str = "-----BEGIN ";
    let text = given.reveal().replace("\\n", "\n");
    // Text before the first block is a comment.
    let blocks = text.split(BEGIN).skip(1);
    let blocks = blocks.map(|block| format!("{BEGIN}{}", block.trim_end()));
    some(PUBLIC_KEY, blocks.collect())
}

fn some<K>(name: &'static str, keys: Vec<K>) -> Result<Vec<K>, ConfigError> {
    match keys.len() {
        0 => Err(unusable(
            name,
            "it contains no key: a secret is text, a public key is PEM",
        )),
        1..=MAX_KEYS => Ok(keys),
        count => Err(unusable(
            name,
            format!("it contains {count} keys, and at most {MAX_KEYS} are allowed"),
        )),
    }
}

pub(super) fn unusable(name: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Key {
        name,
        reason: reason.into(),
    }
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    text.trim().parse().map_err(|_| {
        let known: Vec<String> = KeyKind::ALL
            .iter()
            .flat_map(|kind| kind.algorithms())
            .map(|algorithm| format!("{algorithm:?}"))
            .collect();
        format!("the supported algorithms are {}", known.join(", "))
    })
}

fn name(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("a name is missing"),
        name => Ok(name.to_owned()),
    }
}

fn user_claim(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("it must be the name of a claim"),
        "aud" | "exp" | "iat" | "iss" | "nbf" => {
            Err("that claim is the same for many users, or changes with each token")
        }
        claim => Ok(claim.to_owned()),
    }
}
