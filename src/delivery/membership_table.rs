//! The memberships of a connection by topic, in little memory: 24 bytes each, because there
//! may be a thousand for each of thousands of connections.

use std::sync::Arc;

use crate::domain::{
    membership::Membership,
    snapshot::{Snapshot, Xid},
    topic::Topic,
};

#[derive(Debug, Default)]
pub struct MembershipTable {
    /// In the order of topics.
    entries: Vec<Entry>,
    /// The snapshots that an entry has no room for.
    snapshots: Vec<Arc<Snapshot>>,
}

#[derive(Debug)]
struct Entry {
    topic: Topic,
    /// [`NONE`] if it has none.
    xid: Xid,
    since: PackedSince,
}

/// No transaction id: those that Postgres assigns begin with 3.
const NONE: Xid = Xid(0);

/// A membership's `since` in 8 bytes: usually nothing was running, and a number is enough.
#[derive(Clone, Copy, Debug)]
struct PackedSince(u64);

/// What a [`PackedSince`] means.
#[derive(PartialEq, Eq)]
enum PackedForm<'a> {
    Unknown,
    /// Shows all transactions below.
    Below(Xid),
    Listed(&'a Arc<Snapshot>),
}

impl PackedSince {
    const UNKNOWN: Self = Self(u64::MAX);
    /// The rest is a snapshot's place in the table. No transaction id is as large.
    const LISTED: u64 = 1 << 63;
}

impl MembershipTable {
    pub const EMPTY: Self = Self {
        entries: Vec::new(),
        snapshots: Vec::new(),
    };

    pub fn contains(&self, topic: &Topic) -> bool {
        self.place(topic).is_ok()
    }

    pub fn get(&self, topic: &Topic) -> Option<Membership> {
        let place = self.place(topic).ok()?;
        Some(self.membership(&self.entries[place]))
    }

    /// Whether rows of the transaction belong to the membership in the topic, if there is
    /// one.
    pub fn has(&self, topic: &Topic, row: Xid) -> bool {
        self.place(topic).is_ok_and(|place| {
            let Entry { xid, since, .. } = &self.entries[place];
            (*xid == row && row != NONE) || !self.shows(*since, row)
        })
    }

    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.entries.iter().map(|entry| &entry.topic)
    }

    /// For replacing a name by an equal one, which has its memory already.
    pub fn topics_mut(&mut self) -> impl Iterator<Item = &mut Topic> {
        self.entries.iter_mut().map(|entry| &mut entry.topic)
    }

    /// The youngest transaction that created one of the memberships.
    pub fn top(&self) -> Option<Xid> {
        let xids = self.entries.iter().map(|entry| entry.xid);
        xids.max().filter(|&xid| xid != NONE)
    }

    pub fn remove(&mut self, topic: &Topic) -> Option<(Topic, Membership)> {
        let place = self.place(topic).ok()?;
        let membership = self.membership(&self.entries[place]);
        Some((self.entries.remove(place).topic, membership))
    }

    /// Adds the membership in a topic, or replaces it.
    pub fn insert(&mut self, topic: Topic, membership: Membership) {
        let place = self.place(&topic);
        let entry = self.entry(topic, membership);
        match place {
            Ok(place) => self.entries[place] = entry,
            Err(place) => self.entries.insert(place, entry),
        }
    }

    /// The memberships that the other table doesn't have, or has with another beginning.
    pub fn without(&self, other: &Self) -> Vec<(Topic, Membership)> {
        let is_gone = |entry: &&Entry| {
            let place = other.place(&entry.topic);
            !place.is_ok_and(|place| {
                let found = &other.entries[place];
                found.xid == entry.xid && self.snapshot(entry.since) == other.snapshot(found.since)
            })
        };
        let gone = self.entries.iter().filter(is_gone);
        gone.map(|entry| (entry.topic.clone(), self.membership(entry)))
            .collect()
    }

    fn place(&self, topic: &Topic) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| entry.topic.cmp(topic))
    }

    fn entry(&mut self, topic: Topic, Membership { xid, since }: Membership) -> Entry {
        let since = match since {
            None => PackedSince::UNKNOWN,
            Some(since) if since.running() == 0 && since.xmax().0 < PackedSince::LISTED => {
                PackedSince(since.xmax().0)
            }
            Some(since) => {
                self.snapshots.push(since);
                PackedSince(PackedSince::LISTED + self.snapshots.len() as u64 - 1)
            }
        };
        let xid = xid.unwrap_or(NONE);
        Entry { topic, xid, since }
    }

    fn membership(&self, Entry { xid, since, .. }: &Entry) -> Membership {
        Membership {
            xid: Some(*xid).filter(|&xid| xid != NONE),
            since: match self.snapshot(*since) {
                PackedForm::Unknown => None,
                PackedForm::Below(xmax) => Some(Arc::new(Snapshot::new(xmax, Vec::new()))),
                PackedForm::Listed(snapshot) => Some(Arc::clone(snapshot)),
            },
        }
    }

    fn shows(&self, since: PackedSince, row: Xid) -> bool {
        match self.snapshot(since) {
            PackedForm::Unknown => false,
            PackedForm::Below(xmax) => row < xmax,
            PackedForm::Listed(snapshot) => snapshot.shows(row),
        }
    }

    fn snapshot(&self, since: PackedSince) -> PackedForm<'_> {
        match since.0 {
            u64::MAX => PackedForm::Unknown,
            place if place >= PackedSince::LISTED => {
                PackedForm::Listed(&self.snapshots[(place - PackedSince::LISTED) as usize])
            }
            xmax => PackedForm::Below(Xid(xmax)),
        }
    }
}

/// Of several memberships in a topic, it has one.
impl FromIterator<(Topic, Membership)> for MembershipTable {
    fn from_iter<I: IntoIterator<Item = (Topic, Membership)>>(memberships: I) -> Self {
        let mut table = Self::EMPTY;
        for (topic, membership) in memberships {
            let entry = table.entry(topic, membership);
            table.entries.push(entry);
        }
        let entries = &mut table.entries;
        entries.sort_unstable_by(|one, other| one.topic.cmp(&other.topic));
        entries.dedup_by(|later, earlier| later.topic == earlier.topic);
        entries.shrink_to_fit();
        table.snapshots.shrink_to_fit();
        table
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn topic(number: u8) -> Topic {
        Topic::parse(&number.to_string()).expect("a topic")
    }

    fn snapshot() -> impl Strategy<Value = Arc<Snapshot>> {
        let running = vec((3..20_u64).prop_map(Xid), 0..3);
        (3..20_u64, running).prop_map(|(xmax, running)| Arc::new(Snapshot::new(Xid(xmax), running)))
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let xid = option::of((3..20_u64).prop_map(Xid));
        (xid, option::of(snapshot())).prop_map(|(xid, since)| Membership { xid, since })
    }

    fn is_same(table: &MembershipTable, plain: &BTreeMap<Topic, Membership>) -> bool {
        let is_same = |topic: &Topic| {
            let membership = plain.get(topic);
            table.get(topic).as_ref() == membership
                && table.contains(topic) == membership.is_some()
                && (3..25)
                    .map(Xid)
                    .all(|row| table.has(topic, row) == membership.is_some_and(|one| one.has(row)))
        };
        (0..6).all(|number| is_same(&topic(number)))
            && table.topics().eq(plain.keys())
            && table.top() == plain.values().filter_map(|one| one.xid).max()
    }

    proptest! {
        #[test]
        fn it_has_what_was_put_into_it(
            first in vec((0..6_u8, membership()), 0..6),
            steps in vec((0..6_u8, option::of(membership())), 0..12),
        ) {
            let mut plain: BTreeMap<_, _> =
                first.into_iter().map(|(number, one)| (topic(number), one)).collect();
            let first: MembershipTable = plain.clone().into_iter().collect();
            let mut table: MembershipTable = plain.clone().into_iter().collect();
            prop_assert!(is_same(&table, &plain));
            for (number, step) in steps {
                let topic = topic(number);
                match step {
                    Some(one) => {
                        plain.insert(topic.clone(), one.clone());
                        table.insert(topic, one);
                    }
                    None => prop_assert_eq!(table.remove(&topic), plain.remove_entry(&topic)),
                }
                prop_assert!(is_same(&table, &plain));
            }
            prop_assert!(table.without(&MembershipTable::EMPTY).into_iter().eq(plain));
            let gone = first.without(&table);
            prop_assert!(gone.iter().all(|(topic, one)| table.get(topic).as_ref() != Some(one)));
            let kept = first.topics().filter(|topic| table.get(topic) == first.get(topic));
            prop_assert_eq!(gone.len() + kept.count(), first.topics().len());
        }
    }

    #[test]
    fn an_entry_takes_24_bytes() {
        assert_eq!(size_of::<Entry>(), 24);
    }
}
