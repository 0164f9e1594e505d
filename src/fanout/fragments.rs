//! Splits what a bridge sends into messages that any NATS server accepts, and puts them
//! together again.

use serde::{Deserialize, Serialize};

/// The most bytes of a fragment. Servers accept 1 MiB unless they are configured otherwise.
pub const FRAGMENT_BYTES: usize = 256 << 10;

/// The most fragments of a message. A page of the tail needs about a dozen.
pub const MOST_FRAGMENTS: u16 = 32;

/// Which part of which message a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FragmentHead {
    /// The bridge that sent the message.
    sender: u64,
    /// Counts the sender's messages.
    number: u64,
    index: u16,
    count: u16,
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    pub sender: u64,
    pub number: u64,
    pub body: Vec<u8>,
}

/// A message that needs more than 32 fragments. It is not sent: its receivers
/// poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes, which is too long to send")]
pub struct TooLong(usize);

impl Parcel {
    /// # Errors
    ///
    /// [`TooLong`].
    pub fn split(&self) -> Result<Vec<Vec<u8>>, TooLong> {
        let count = self.body.len().div_ceil(FRAGMENT_BYTES).max(1);
        let count = u16::try_from(count).ok();
        let count = count.filter(|&count| count <= MOST_FRAGMENTS);
        let count = count.ok_or(TooLong(self.body.len()))?;
        let mut pieces = self.body.chunks(FRAGMENT_BYTES);
        let fragment = |index| {
            let head = FragmentHead {
                sender: self.sender,
                number: self.number,
                index,
                count,
            };
            let mut fragment = postcard::to_allocvec(&head).unwrap_or_default();
            fragment.extend_from_slice(pieces.next().unwrap_or_default());
            fragment
        };
        Ok((0..count).map(fragment).collect())
    }
}

/// Puts fragments together. It holds one message: the fragments of a sender arrive in
/// order or not at all, and a message that lacks one is dropped. Its positions tell the
/// receiver that something is missing, once the next message arrives.
#[derive(Debug, Default)]
pub struct Assembler {
    begun: Option<(FragmentHead, Vec<u8>)>,
}

impl Assembler {
    /// Adds a fragment. Returns the message that it completes.
    pub fn add(&mut self, fragment: &[u8]) -> Option<Parcel> {
        let begun = self.begun.take();
        let (head, piece) = postcard::take_from_bytes::<FragmentHead>(fragment).ok()?;
        if head.index >= head.count || head.count > MOST_FRAGMENTS || piece.len() > FRAGMENT_BYTES {
            return None;
        }
        let mut body = match begun {
            _ if head.index == 0 => Vec::new(),
            Some((expected, body)) if expected == head => body,
            _ => return None,
        };
        body.extend_from_slice(piece);
        let next = head.index + 1;
        if next < head.count {
            let head = FragmentHead {
                index: next,
                ..head
            };
            self.begun = Some((head, body));
            return None;
        }
        Some(Parcel {
            sender: head.sender,
            number: head.number,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(sender: u64, bytes: usize) -> Parcel {
        Parcel {
            sender,
            number: 7,
            body: (0..bytes).map(|byte| byte as u8).collect(),
        }
    }

    fn arrive<'a>(fragments: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<Parcel> {
        let mut assembler = Assembler::default();
        let fragments = fragments.into_iter();
        fragments.filter_map(|it| assembler.add(it)).collect()
    }

    #[test]
    fn a_message_of_any_size_arrives_whole() {
        for bytes in [0, 1, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, 3 * FRAGMENT_BYTES] {
            let sent = parcel(1, bytes);
            let fragments = sent.split().expect("fragments");
            assert!(fragments.iter().all(|it| it.len() < FRAGMENT_BYTES + 32));
            assert_eq!(arrive(&fragments), [sent]);
        }
        let most = usize::from(MOST_FRAGMENTS) * FRAGMENT_BYTES;
        assert!(parcel(1, most).split().is_ok());
        assert_eq!(parcel(1, most + 1).split(), Err(TooLong(most + 1)));
    }

    #[test]
    fn a_message_that_lacks_a_fragment_never_arrives_and_the_next_one_does() {
        let fragments = parcel(1, 3 * FRAGMENT_BYTES).split().expect("fragments");
        let [a, b, c] = &fragments[..] else {
            panic!("{} fragments", fragments.len())
        };
        let (next, other) = (parcel(2, 1), parcel(3, 2 * FRAGMENT_BYTES));
        let last = &next.split().expect("fragments")[0];
        let [d, e] = &other.split().expect("fragments")[..] else {
            panic!("not two")
        };
        for lossy in [
            vec![a, b],
            vec![a, c],
            vec![b, c],
            vec![a, c, b],
            vec![a, b, b, c],
            vec![a, d, b, c, e],
        ] {
            assert_eq!(
                arrive(lossy.into_iter().chain([last])),
                std::slice::from_ref(&next)
            );
        }
    }

    #[test]
    fn malformed_fragments_are_dropped() {
        let head = |index, count| FragmentHead {
            sender: 1,
            number: 1,
            index,
            count,
        };
        for head in [head(0, 0), head(1, 1), head(0, MOST_FRAGMENTS + 1)] {
            let fragment = postcard::to_allocvec(&head).expect("a fragment");
            assert_eq!(arrive([&fragment]), []);
        }
        assert_eq!(arrive([&Vec::new(), &vec![0xff; 40]]), []);
    }
}
