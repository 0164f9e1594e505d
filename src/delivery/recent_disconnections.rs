//! The most recent disconnections, for clients that were being authenticated when those
//! were read and register afterwards.

use std::collections::VecDeque;

use crate::domain::identity::{Disconnection, Identity};

/// The number of disconnections when a client's authentication began. Those between then
/// and its registration may concern it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DisconnectCursor(u64);

/// How many disconnections are kept for clients that are being authenticated: 1 MB, or 4
/// MB if all user ids have the maximum length. That is five of the listener's pages, so a
/// client that is authenticated within milliseconds misses none, even while millions of
/// users are logged out. A client that may have missed some has to reconnect.
const REMEMBERED_DISCONNECTIONS: usize = 10_000;

/// The most recent disconnections.
#[derive(Debug, Default)]
pub struct Disconnected {
    count: u64,
    last: VecDeque<Disconnection>,
}

impl Disconnected {
    /// Call this before a client is authenticated.
    pub fn note(&self) -> DisconnectCursor {
        DisconnectCursor(self.count)
    }

    pub fn add(&mut self, disconnections: &[Disconnection]) {
        self.count += disconnections.len() as u64;
        let beyond = disconnections
            .len()
            .saturating_sub(REMEMBERED_DISCONNECTIONS);
        let last = &disconnections[beyond..];
        let room = REMEMBERED_DISCONNECTIONS - last.len();
        self.last.drain(..self.last.len().saturating_sub(room));
        self.last.extend(last.iter().cloned());
    }

    /// Whether a disconnection after `noted` matches this client, or might have: more of
    /// them were added than are kept.
    pub fn means(&self, identity: &Identity, DisconnectCursor(noted): DisconnectCursor) -> bool {
        let since = usize::try_from(self.count - noted).unwrap_or(usize::MAX);
        let mut last = self.last.iter().rev().take(since);
        since > self.last.len() || last.any(|one| one.means(identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::notification::UserId;

    #[test]
    fn who_has_missed_more_than_is_remembered_might_be_meant() {
        let user = |name| UserId::parse(name).expect("a user");
        let (mut disconnected, alice) = (Disconnected::default(), Identity::from(user("alice")));
        let noted = disconnected.note();
        let other = Disconnection::User(user("carol"));
        let mut add = |count| {
            disconnected.add(&vec![other.clone(); count]);
            assert!(disconnected.last.len() <= REMEMBERED_DISCONNECTIONS);
            disconnected.means(&alice, noted)
        };
        assert!(!add(REMEMBERED_DISCONNECTIONS - 1));
        assert!(!add(1));
        assert!(add(1));
        assert!(add(2 * REMEMBERED_DISCONNECTIONS));
    }
}
