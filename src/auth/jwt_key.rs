//! The keys that verify tokens: secrets and public keys, and the algorithms that each may
//! be used with.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};

/// The accepted sizes of RSA keys in bits: smaller ones can be broken (RFC 7518, section
/// 3.3), and larger ones cost more than they are worth.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// The kind of a key, which decides the algorithms that it can serve. A key is never used
/// with an algorithm of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyKind {
    pub const ALL: [Self; 5] = [
        Self::Secret,
        Self::Rsa,
        Self::P256,
        Self::P384,
        Self::Ed25519,
    ];

    /// The algorithms that it can serve. The first is the default.
    pub fn algorithms(self) -> &'static [Algorithm] {
        use Algorithm::{
            ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
        };
        match self {
            Self::Secret => &[HS256, HS384, HS512],
            Self::Rsa => &[RS256, RS384, RS512, PS256, PS384, PS512],
            Self::P256 => &[ES256],
            Self::P384 => &[ES384],
            Self::Ed25519 => &[EdDSA],
        }
    }

    /// The kind of key that an algorithm needs.
    pub fn of(algorithm: Algorithm) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.algorithms().contains(&algorithm))
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "a secret",
            Self::Rsa => "an RSA key",
            Self::P256 => "a P-256 key",
            Self::P384 => "a P-384 key",
            Self::Ed25519 => "an Ed25519 key",
        })
    }
}

/// The accepted algorithms: those configured, or the default of each kind of key.
#[derive(Clone, Debug, Default)]
pub struct Accepted(Vec<Algorithm>);

impl Accepted {
    /// Accepts only these; an empty list means the defaults.
    pub fn only(algorithms: &[Algorithm]) -> Self {
        Self(algorithms.to_vec())
    }

    /// The configured algorithms; empty if the defaults are accepted.
    pub fn configured(&self) -> &[Algorithm] {
        &self.0
    }

    /// The algorithms that a key of this kind may be used with, in the order in which
    /// they were configured.
    pub fn of(&self, kind: KeyKind) -> Vec<Algorithm> {
        let served = kind.algorithms();
        if self.0.is_empty() {
            return served[..1].to_vec();
        }
        let configured = self.0.iter().copied();
        configured
            .filter(|algorithm| served.contains(algorithm))
            .collect()
    }

    /// The algorithms that a key may be used with, given the one that it names, if any.
    fn of_key(&self, kind: KeyKind, own: Option<Algorithm>) -> Vec<Algorithm> {
        match own {
            None => self.of(kind),
            Some(own) => {
                let is_accepted = self.0.is_empty() || self.0.contains(&own);
                let serves = is_accepted && kind.algorithms().contains(&own);
                serves.then_some(own).into_iter().collect()
            }
        }
    }
}

/// A shared secret. Its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSecret(String);

impl JwtSecret {
    /// Checks that the secret is at least as long as the hash of each algorithm (RFC
    /// 7518, section 3.2).
    ///
    /// # Errors
    ///
    /// A message with the problem and the fix.
    pub fn suits(&self, algorithms: &[Algorithm]) -> Result<(), String> {
        let too_long = |algorithm: &&Algorithm| self.0.len() < hash_bytes(**algorithm);
        match algorithms.iter().find(too_long) {
            None => Ok(()),
            Some(&algorithm) => Err(format!(
                "it has {} bytes, but {algorithm:?} needs at least {}: generate one with \
                 `openssl rand -hex {1}`",
                self.0.len(),
                hash_bytes(algorithm)
            )),
        }
    }

    /// The key for signing with this secret.
    pub(crate) fn signing(&self) -> EncodingKey {
        EncodingKey::from_secret(self.0.as_bytes())
    }
}

/// The length of the algorithm's hash, which is also the least length of a secret.
fn hash_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    }
}

impl FromStr for JwtSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let secret = Self(text.to_owned());
        secret.suits(&[Algorithm::HS256])?;
        Ok(secret)
    }
}

impl fmt::Debug for JwtSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtSecret(hidden)")
    }
}

/// A key, and the algorithms that it may be used with.
#[derive(Clone, Debug)]
pub struct Key {
    key: DecodingKey,
    kind: KeyKind,
    algorithms: Vec<Algorithm>,
    /// Its name in a key set.
    kid: Option<String>,
}

impl Key {
    /// Fails if the secret is too short for one of the accepted algorithms.
    pub fn of_secret(secret: &JwtSecret, accepted: &Accepted) -> Result<Self, String> {
        let algorithms = accepted.of(KeyKind::Secret);
        secret.suits(&algorithms)?;
        Ok(Self {
            key: DecodingKey::from_secret(secret.0.as_bytes()),
            kind: KeyKind::Secret,
            algorithms,
            kid: None,
        })
    }

    /// A public key from one block of PEM.
    ///
    /// # Errors
    ///
    /// A message with the problem and the fix.
    pub fn of_pem(block: &str, accepted: &Accepted) -> Result<Self, String> {
        const UNUSABLE: &str = "it is not a public key for RSA, P-256, P-384 or Ed25519";
        let label = block
            .strip_prefix("-----BEGIN ")
            .and_then(|rest| rest.split_once("-----"))
            .map_or("", |(label, _)| label);
        match label {
            "PUBLIC KEY" | "RSA PUBLIC KEY" => {}
            "CERTIFICATE" => {
                return Err("it is a certificate: extract its public key with \
                            `openssl x509 -in certificate.pem -pubkey -noout`"
                    .to_owned());
            }
            label if label.ends_with("PRIVATE KEY") => {
                return Err(
                    "it is a private key, which can sign tokens: keep it where tokens are \
                            signed, and use its public key here, which \
                            `openssl pkey -in private.pem -pubout` prints"
                        .to_owned(),
                );
            }
            _ => return Err("it must be PEM, beginning with -----BEGIN PUBLIC KEY-----".to_owned()),
        }
        let pem = block.as_bytes();
        let key = DecodingKey::from_rsa_pem(pem)
            .or_else(|_| DecodingKey::from_ec_pem(pem))
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .and_then(|key| Jwk::from_decoding_key(&key, None))
            .map_err(|_| UNUSABLE.to_owned())?;
        let (key, kind) = public_key(&key).map_err(|error| match error {
            UnusableKey::Bits(bits) => format!(
                "it is an RSA key of {bits} bits, but {} to {} are accepted: generate one with \
                 `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072`",
                RSA_BITS.start(),
                RSA_BITS.end()
            ),
            UnusableKey::Kind => UNUSABLE.to_owned(),
        })?;
        Ok(Self {
            key,
            kind,
            algorithms: accepted.of(kind),
            kid: None,
        })
    }

    /// A key of a set. `None` if it can't be used here: a symmetric key (anyone who can
    /// read the set could sign with it), a weak key or one of an unknown kind, or a key
    /// for another purpose or for an algorithm that isn't accepted.
    pub fn of_jwk(jwk: &Jwk, accepted: &Accepted) -> Option<Self> {
        let common = &jwk.common;
        let verifies = match (&common.public_key_use, &common.key_operations) {
            (Some(purpose), _) => *purpose == PublicKeyUse::Signature,
            (None, Some(operations)) => operations.contains(&KeyOperations::Verify),
            (None, None) => true,
        };
        if !verifies {
            return None;
        }
        let (key, kind) = public_key(jwk).ok()?;
        let own = match common.key_algorithm {
            None => None,
            Some(own) => Some(Algorithm::try_from(own).ok()?),
        };
        let algorithms = accepted.of_key(kind, own);
        (!algorithms.is_empty()).then(|| Self {
            key,
            kind,
            algorithms,
            kid: common.key_id.clone(),
        })
    }

    pub fn decoding(&self) -> &DecodingKey {
        &self.key
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Its name in a key set.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether it may be used with this algorithm.
    pub fn serves(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether there is an algorithm that it may be used with.
    pub fn is_used(&self) -> bool {
        !self.algorithms.is_empty()
    }
}

enum UnusableKey {
    Bits(usize),
    Kind,
}

/// Builds a key. Its numbers are checked here, because the library only does so when it
/// verifies a token, and reports an invalid signature then.
fn public_key(jwk: &Jwk) -> Result<(DecodingKey, KeyKind), UnusableKey> {
    let key = DecodingKey::from_jwk(jwk).map_err(|_| UnusableKey::Kind)?;
    let (kind, algorithm): (_, &dyn VerificationAlgorithm) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => return Ok((rsa_key(&key)?, KeyKind::Rsa)),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (KeyKind::P256, &ECDSA_P256_SHA256_FIXED)
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
            (KeyKind::P384, &ECDSA_P384_SHA384_FIXED)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (KeyKind::Ed25519, &ED25519)
        }
        _ => return Err(UnusableKey::Kind),
    };
    // Fails if the point is not on the curve.
    key.try_get_as_bytes()
        .ok()
        .and_then(|point| ParsedPublicKey::new(algorithm, point).ok())
        .ok_or(UnusableKey::Kind)?;
    Ok((key, kind))
}

fn rsa_key(key: &DecodingKey) -> Result<DecodingKey, UnusableKey> {
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else {
        return Err(UnusableKey::Kind);
    };
    // Some encoders add a leading zero byte for the sign, which verification rejects.
    let [n, e] = [n, e].map(|number| {
        let zeros = number.iter().take_while(|&&byte| byte == 0).count();
        &number[zeros..]
    });
    let leading = n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let bits = n.len() * 8 - leading;
    if !RSA_BITS.contains(&bits) {
        return Err(UnusableKey::Bits(bits));
    }
    Ok(DecodingKey::from_rsa_raw_components(n, e))
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    /// An RSA key of a set whose modulus has these bytes.
    fn rsa(modulus: &[u8]) -> Option<Key> {
        let n = URL_SAFE_NO_PAD.encode(modulus);
        let jwk = json!({ "kty": "RSA", "n": n, "e": "AQAB" });
        let jwk: Jwk = serde_json::from_value(jwk).expect("a key");
        Key::of_jwk(&jwk, &Accepted::default())
    }

    #[test]
    fn the_leading_zero_of_a_modulus_is_no_part_of_it() {
        let modulus = [0xc1; 256];
        let key = rsa(&[&[0], &modulus[..]].concat()).expect("2,048 bits");
        let DecodingKeyKind::RsaModulusExponent { n, .. } = key.decoding().kind() else {
            panic!("it is an RSA key");
        };
        assert_eq!(n, &modulus);
        assert!(rsa(&[&[0], &modulus[1..]].concat()).is_none());
    }
}
