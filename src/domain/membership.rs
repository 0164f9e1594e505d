//! Memberships: which rows of a topic a user is owed.
//!
//! A membership is one row `(user, topic, since, xid)`. Leaving deletes it, and rejoining
//! creates another one. A user is owed a row as long as the user has a membership that the
//! row [belongs](Membership::has) to.

use std::sync::Arc;

use crate::domain::{
    position::Position,
    snapshot::{Snapshot, Xid},
};

/// A user's membership in one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The transaction that created it. It is what tells a position whether its reader
    /// knew the membership, as for a row. `None` if nothing in the database created it:
    /// the topic everyone has, and those of tokens and tickets. A position can't lack
    /// those.
    pub xid: Option<Xid>,
    /// What was visible when the user joined: rows that it shows aren't delivered. `None`
    /// if only the position decides.
    pub since: Option<Arc<Snapshot>>,
}

impl Membership {
    /// The membership in a topic that the credentials grant, or that everyone has.
    pub const GRANTED: Self = Self {
        xid: None,
        since: None,
    };

    /// Whether rows of the transaction `row` belong to this membership.
    ///
    /// The membership's own transaction is tested first. A snapshot that a transaction
    /// takes never lists the transaction itself as running, so it shows it as visible
    /// once any younger one has ended.
    pub fn has(&self, row: Xid) -> bool {
        self.xid == Some(row) || self.since.as_ref().is_none_or(|since| !since.shows(row))
    }

    /// Whether a reader at `position` did not know the membership.
    pub fn is_new(&self, position: &Position) -> bool {
        self.xid.is_some_and(|xid| !position.is_past(xid))
    }

    /// Whether a reader that has handled what `snapshot` shows did not handle this one.
    pub fn is_after(&self, snapshot: &Snapshot) -> bool {
        self.xid.is_some_and(|xid| !snapshot.shows(xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(xid: u64, since: Snapshot) -> Membership {
        Membership {
            xid: Some(Xid(xid)),
            since: Some(Arc::new(since)),
        }
    }

    #[test]
    fn what_was_visible_before_joining_does_not_belong_and_all_else_does() {
        // Transaction 5 was running when 7 joined.
        let membership = joined(7, Snapshot::new(Xid(8), vec![Xid(5)]));
        let belong = [4, 5, 6, 7, 8, 9].map(|xid| membership.has(Xid(xid)));
        assert_eq!(belong, [false, true, false, true, true, true]);
    }

    #[test]
    fn rows_of_the_joining_transaction_belong_whether_or_not_another_has_ended() {
        for xmax in [7, 8, 9] {
            assert!(joined(7, Snapshot::new(Xid(xmax), vec![])).has(Xid(7)));
        }
    }

    #[test]
    fn a_granted_topic_has_every_row_and_is_new_to_nobody() {
        assert!(Membership::GRANTED.has(Xid(1)));
        assert!(!Membership::GRANTED.is_new(&Position::default()));
        assert!(!Membership::GRANTED.is_after(&Snapshot::default()));
    }
}
