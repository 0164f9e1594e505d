//! Key pairs as identity providers use them, generated for the test that needs them.

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, encode, get_current_timestamp, jwk::Jwk,
};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use serde_json::{Value, json};

/// A private key, and its public key in the formats that providers publish.
pub struct KeyPair {
    signing: EncodingKey,
    pem: String,
    jwk: Jwk,
}

impl KeyPair {
    pub fn rsa() -> Self {
        let pair = rcgen::KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048);
        Self::of(
            &pair.expect("a key"),
            EncodingKey::from_rsa_pem,
            DecodingKey::from_rsa_pem,
        )
    }

    pub fn p256() -> Self {
        let pair = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        Self::of(
            &pair.expect("a key"),
            EncodingKey::from_ec_pem,
            DecodingKey::from_ec_pem,
        )
    }

    pub fn p384() -> Self {
        let pair = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384);
        Self::of(
            &pair.expect("a key"),
            EncodingKey::from_ec_pem,
            DecodingKey::from_ec_pem,
        )
    }

    pub fn ed25519() -> Self {
        let pair = rcgen::KeyPair::generate_for(&PKCS_ED25519);
        Self::of(
            &pair.expect("a key"),
            EncodingKey::from_ed_pem,
            DecodingKey::from_ed_pem,
        )
    }

    fn of(
        pair: &rcgen::KeyPair,
        private: fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>,
        public: fn(&[u8]) -> jsonwebtoken::errors::Result<DecodingKey>,
    ) -> Self {
        let pem = pair.public_key_pem();
        let key = public(pem.as_bytes()).expect("its public key");
        Self {
            signing: private(pair.serialize_pem().as_bytes()).expect("its private key"),
            jwk: Jwk::from_decoding_key(&key, None).expect("a JWK"),
            pem,
        }
    }

    /// The public key in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The public key as in a key set, with only a `kid` added.
    pub fn jwk(&self, kid: &str) -> Value {
        let mut jwk = serde_json::to_value(&self.jwk).expect("JSON");
        jwk["kid"] = kid.into();
        jwk
    }

    /// A token with these claims. With an empty `kid`, the header has none.
    pub fn sign(&self, algorithm: Algorithm, kid: &str, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = (!kid.is_empty()).then(|| kid.to_owned());
        self.sign_with(&header, claims)
    }

    /// A token with this header.
    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        encode(header, claims, &self.signing).expect("a token")
    }

    /// A valid token of alice.
    pub fn token(&self, algorithm: Algorithm, kid: &str) -> String {
        self.sign(algorithm, kid, &claims("alice"))
    }
}

/// Claims for this user that are valid for ten minutes.
pub fn claims(user: &str) -> Value {
    json!({ "sub": user, "exp": get_current_timestamp() + 600 })
}
