//! Seals and opens messages with a key that only the bridges have.
//!
//! A forged `NOTIFY` can do nothing, and neither may a forged message: the NATS
//! servers can drop, delay, repeat and reorder messages, and see their sizes, but can neither
//! read nor invent one. A repeated message is opened again; its positions show that it is
//! not new.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};

/// The layout of a message. A bridge drops messages of any other version.
const VERSION: u8 = 1;

/// Bytes of an AES-256 key.
pub const KEY_LEN: usize = 32;

/// Bytes of the version and the key's id.
const HEADER_LEN: usize = 1 + size_of::<u32>();

/// A key and the id by which messages name it.
#[derive(Debug)]
pub struct FeedKey {
    id: u32,
    key: RandomizedNonceKey,
}

impl FeedKey {
    /// # Errors
    ///
    /// If `bytes` are not [`KEY_LEN`] bytes.
    pub fn new(id: u32, bytes: &[u8]) -> Result<Self, SealError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).map_err(|_| SealError)?;
        Ok(Self { id, key })
    }
}

/// The key that seals, and the one before it, which still opens while the bridges take up
/// the new one.
#[derive(Debug)]
pub struct FeedKeys {
    current: FeedKey,
    previous: Option<FeedKey>,
}

impl FeedKeys {
    pub fn new(current: FeedKey, previous: Option<FeedKey>) -> Self {
        Self { current, previous }
    }

    /// Seals `body` for one subject: version, key id, nonce, then the sealed body.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes for the nonce.
    pub fn seal(&self, subject: &str, mut body: Vec<u8>) -> Result<Vec<u8>, SealError> {
        let header = header(self.current.id);
        let bound = Aad::from(bound_data(header, subject));
        let sealed = self.current.key.seal_in_place_append_tag(bound, &mut body);
        let nonce = sealed.map_err(|_| SealError)?;
        Ok([&header, nonce.as_ref().as_slice(), &body].concat())
    }

    /// The body of a message that came on `subject`.
    ///
    /// # Errors
    ///
    /// If the message is of another version, sealed by a key that this bridge doesn't
    /// have, or was not sealed with that key for this subject.
    pub fn open(&self, subject: &str, message: &[u8]) -> Result<Vec<u8>, UnreadableMessage> {
        let (&header, rest) = message
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(UnreadableMessage::Forged)?;
        let [version, id @ ..] = header;
        if version != VERSION {
            return Err(UnreadableMessage::OtherVersion(version));
        }
        let id = u32::from_be_bytes(id);
        let mut keys = std::iter::once(&self.current).chain(&self.previous);
        let key = keys
            .find(|key| key.id == id)
            .ok_or(UnreadableMessage::UnknownKey(id))?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(UnreadableMessage::Forged)?;
        let mut body = sealed.to_vec();
        let bound = Aad::from(bound_data(header, subject));
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.key.open_in_place(nonce, bound, &mut body);
        let len = opened.map_err(|_| UnreadableMessage::Forged)?.len();
        body.truncate(len);
        Ok(body)
    }
}

fn header(id: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = id.to_be_bytes();
    [VERSION, a, b, c, d]
}

/// What the seal also covers, so that a message cannot be moved to another subject.
fn bound_data(header: [u8; HEADER_LEN], subject: &str) -> Vec<u8> {
    [&header, subject.as_bytes()].concat()
}

/// A key that is no AES-256 key, or a body that can't be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't seal with this key: it must have {KEY_LEN} bytes")]
pub struct SealError;

/// A message to be dropped. The bridge polls instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableMessage {
    #[error("a message of version {0}; this bridge reads version {VERSION}")]
    OtherVersion(u8),
    #[error("a message sealed with key {0}, which this bridge doesn't have")]
    UnknownKey(u32),
    #[error("a message that is truncated, or that no bridge has sealed for this subject")]
    Forged,
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SUBJECT: &str = "tidings.1.7.8.0";

    fn key(id: u32, byte: u8) -> FeedKey {
        FeedKey::new(id, &[byte; KEY_LEN]).expect("a key")
    }

    #[test]
    fn a_key_of_another_length_is_rejected() {
        assert!(FeedKey::new(1, &[0; 16]).is_err());
    }

    #[test]
    fn after_a_rotation_the_previous_key_still_opens() {
        let before = FeedKeys::new(key(1, 1), None);
        let after = FeedKeys::new(key(2, 2), Some(key(1, 1)));
        let old = before.seal(SUBJECT, b"old".to_vec()).expect("sealed");
        let new = after.seal(SUBJECT, b"new".to_vec()).expect("sealed");
        assert_eq!(after.open(SUBJECT, &old), Ok(b"old".to_vec()));
        assert_eq!(after.open(SUBJECT, &new), Ok(b"new".to_vec()));
        assert_eq!(
            before.open(SUBJECT, &new),
            Err(UnreadableMessage::UnknownKey(2))
        );
    }

    #[test]
    fn a_wrong_key_or_subject_opens_nothing() {
        let sealed = FeedKeys::new(key(1, 1), None).seal(SUBJECT, b"rows".to_vec());
        let sealed = sealed.expect("sealed");
        let wrong = FeedKeys::new(key(1, 9), None);
        assert_eq!(wrong.open(SUBJECT, &sealed), Err(UnreadableMessage::Forged));
        let right = FeedKeys::new(key(1, 1), None);
        assert_eq!(
            right.open("tidings.1.7.9.0", &sealed),
            Err(UnreadableMessage::Forged)
        );
    }

    proptest! {
        #[test]
        fn only_the_whole_message_opens(
            body in vec(any::<u8>(), 0..200), place in any::<prop::sample::Index>(), bit in 0..8u8
        ) {
            let keys = FeedKeys::new(key(1, 1), None);
            let sealed = keys.seal(SUBJECT, body.clone()).expect("sealed");
            prop_assert_eq!(keys.open(SUBJECT, &sealed), Ok(body));
            let at = place.index(sealed.len());
            prop_assert!(keys.open(SUBJECT, &sealed[..at]).is_err());
            let mut forged = sealed;
            forged[at] ^= 1 << bit;
            prop_assert!(keys.open(SUBJECT, &forged).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_open(bytes in vec(any::<u8>(), 0..100)) {
            prop_assert!(FeedKeys::new(key(1, 1), None).open(SUBJECT, &bytes).is_err());
        }
    }
}
