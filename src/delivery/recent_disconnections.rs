//! Which streams were to end lately, for those who are being identified
//! meanwhile and register later.

use std::collections::VecDeque;

use crate::domain::identity::{Disconnection, Identity};

/// How many disconnections there were when a client began to be identified. It
/// registers later, and those in between may mean it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted(u64);

/// Disconnections that are remembered for those who are being identified: 1 MB, or
/// 4 MB if all user ids are of the longest. That is five pages of the listener, so a
/// client that is identified within milliseconds misses none of them even while
/// millions of users are logged out. One that has missed more is sent back.
const REMEMBERED_DISCONNECTIONS: usize = 10_000;

/// Which streams were to end lately.
#[derive(Debug, Default)]
pub struct Disconnected {
    count: u64,
    last: VecDeque<Disconnection>,
}

impl Disconnected {
    /// What to note before a client is identified.
    pub fn note(&self) -> Noted {
        Noted(self.count)
    }

    /// Remembers them.
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

    /// Whether one that came after `noted` means this client, or might.
    pub fn means(&self, identity: &Identity, Noted(noted): Noted) -> bool {
        let since = usize::try_from(self.count - noted).unwrap_or(usize::MAX);
        let mut last = self.last.iter().rev().take(since);
        since > self.last.len() || last.any(|one| one.means(&identity.user, identity.ticket))
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
