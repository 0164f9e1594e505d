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
    since: Since,
}

/// No transaction id: those that Postgres assigns begin with 3.
const NONE: Xid = Xid(0);

/// A membership's `since` in 8 bytes: usually nothing was running, and a number is enough.
#[derive(Clone, Copy, Debug)]
struct Since(u64);

/// What a [`Since`] means.
enum SinceForm {
    Unknown,
    /// Shows all transactions below.
    Below(Xid),
    /// The place of the snapshot in the table.
    Listed(usize),
}

impl Since {
    const UNKNOWN: Self = Self(u64::MAX);
    /// The rest is a place. No transaction id is as large.
    const LISTED: u64 = 1 << 63;

    fn form(self) -> SinceForm {
        match self.0 {
            u64::MAX => SinceForm::Unknown,
            place if place >= Self::LISTED => SinceForm::Listed((place - Self::LISTED) as usize),
            xmax => SinceForm::Below(Xid(xmax)),
        }
    }
}

impl MembershipTable {
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
            *xid == row || !self.shows(*since, row)
        })
    }

    /// Topics in order. They may be replaced by equal ones, which share their memory.
    pub fn topics_mut(&mut self) -> impl Iterator<Item = &mut Topic> {
        self.entries.iter_mut().map(|entry| &mut entry.topic)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
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

    fn place(&self, topic: &Topic) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| entry.topic.cmp(topic))
    }

    fn entry(&mut self, topic: Topic, Membership { xid, since }: Membership) -> Entry {
        let since = match since {
            None => Since::UNKNOWN,
            Some(since) if since.running() == 0 && since.xmax().0 < Since::LISTED => {
                Since(since.xmax().0)
            }
            Some(since) => {
                self.snapshots.push(since);
                Since(Since::LISTED + self.snapshots.len() as u64 - 1)
            }
        };
        let xid = xid.unwrap_or(NONE);
        Entry { topic, xid, since }
    }

    fn membership(&self, Entry { xid, since, .. }: &Entry) -> Membership {
        Membership {
            xid: Some(*xid).filter(|&xid| xid != NONE),
            since: match since.form() {
                SinceForm::Unknown => None,
                SinceForm::Below(xmax) => Some(Arc::new(Snapshot::new(xmax, Vec::new()))),
                SinceForm::Listed(place) => Some(Arc::clone(&self.snapshots[place])),
            },
        }
    }

    fn shows(&self, since: Since, row: Xid) -> bool {
        match since.form() {
            SinceForm::Unknown => false,
            SinceForm::Below(xmax) => row < xmax,
            SinceForm::Listed(place) => self.snapshots[place].shows(row),
        }
    }
}

/// From memberships in the order of their topics.
impl FromIterator<(Topic, Membership)> for MembershipTable {
    fn from_iter<I: IntoIterator<Item = (Topic, Membership)>>(memberships: I) -> Self {
        let memberships = memberships.into_iter();
        let mut table = Self {
            entries: Vec::with_capacity(memberships.size_hint().0),
            snapshots: Vec::new(),
        };
        for (topic, membership) in memberships {
            let entry = table.entry(topic, membership);
            table.entries.push(entry);
        }
        table.snapshots.shrink_to_fit();
        table
    }
}

impl IntoIterator for MembershipTable {
    type Item = (Topic, Membership);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(mut self) -> Self::IntoIter {
        let entries = std::mem::take(&mut self.entries);
        let memberships = entries.into_iter().map(|entry| {
            let membership = self.membership(&entry);
            (entry.topic, membership)
        });
        memberships.collect::<Vec<_>>().into_iter()
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
            && table.len() == plain.len()
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
            prop_assert!(table.topics_mut().map(|topic| &*topic).eq(plain.keys()));
            prop_assert!(table.into_iter().eq(plain));
        }
    }

    #[test]
    fn an_entry_takes_24_bytes() {
        assert_eq!(size_of::<Entry>(), 24);
    }
}
