//! The memberships of a connection by topic, in little memory: 16 bytes each, because there
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
    /// The memberships that an entry has no room for.
    others: Vec<Membership>,
}

#[derive(Debug)]
struct Entry {
    topic: Topic,
    packed: PackedMembership,
}

/// A membership in 8 bytes: usually nothing else was running when the user joined, and the
/// snapshot's `xmax` is close to the transaction. The first bits say what the rest is:
///
/// - `0`: the transaction in 47 bits, and by how much `xmax` differs from it in 16.
/// - `10`: there is no transaction, and this is `xmax`. All ones: there is no snapshot either.
/// - `11`: the membership's place among the table's others.
///
/// Equal memberships have the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackedMembership(u64);

/// What a [`PackedMembership`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PackedForm {
    /// Rows belong to it that this transaction wrote, or others from `since` on.
    Joined {
        xid: Xid,
        since: Xid,
    },
    /// Rows belong to it that transactions wrote from `since` on.
    Given {
        since: Xid,
    },
    Granted,
    Other(usize),
}

impl PackedMembership {
    const DISTANCE_BITS: u32 = 16;
    /// Added to the distance, which may be negative.
    const CLOSE: u64 = 1 << (Self::DISTANCE_BITS - 1);
    const JOINED_BITS: u32 = 63 - Self::DISTANCE_BITS;
    const GIVEN: u64 = 0b10 << 62;
    const OTHER: u64 = 0b11 << 62;
    const GRANTED: Self = Self(Self::OTHER - 1);

    /// `None` if it doesn't fit.
    fn pack(membership: &Membership) -> Option<Self> {
        let since = match &membership.since {
            None if membership.xid.is_none() => return Some(Self::GRANTED),
            Some(since) if since.running() == 0 => since.xmax().0,
            _ => return None,
        };
        match membership.xid {
            None => {
                let packed = Self(Self::GIVEN.checked_add(since)?);
                (packed.0 < Self::GRANTED.0).then_some(packed)
            }
            Some(Xid(xid)) => {
                let distance = since.checked_add(Self::CLOSE)?.checked_sub(xid)?;
                let fits = xid >> Self::JOINED_BITS == 0 && distance >> Self::DISTANCE_BITS == 0;
                fits.then_some(Self(xid << Self::DISTANCE_BITS | distance))
            }
        }
    }

    fn form(self) -> PackedForm {
        match self {
            Self::GRANTED => PackedForm::Granted,
            Self(place) if place >= Self::OTHER => {
                PackedForm::Other((place - Self::OTHER) as usize)
            }
            Self(given) if given >= Self::GIVEN => PackedForm::Given {
                since: Xid(given - Self::GIVEN),
            },
            Self(joined) => {
                let xid = joined >> Self::DISTANCE_BITS;
                let distance = joined & (2 * Self::CLOSE - 1);
                PackedForm::Joined {
                    xid: Xid(xid),
                    since: Xid(xid + distance - Self::CLOSE),
                }
            }
        }
    }
}

impl MembershipTable {
    pub const EMPTY: Self = Self {
        entries: Vec::new(),
        others: Vec::new(),
    };

    pub fn contains(&self, topic: &Topic) -> bool {
        self.place(topic).is_ok()
    }

    pub fn get(&self, topic: &Topic) -> Option<Membership> {
        let place = self.place(topic).ok()?;
        Some(self.membership(self.entries[place].packed))
    }

    /// Whether rows of the transaction belong to the membership in the topic, if there is
    /// one.
    pub fn has(&self, topic: &Topic, row: Xid) -> bool {
        self.place(topic)
            .is_ok_and(|place| match self.entries[place].packed.form() {
                PackedForm::Joined { xid, since } => row == xid || row >= since,
                PackedForm::Given { since } => row >= since,
                PackedForm::Granted => true,
                PackedForm::Other(place) => self.others[place].has(row),
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
        let xids = self.entries.iter().map(|entry| match entry.packed.form() {
            PackedForm::Joined { xid, .. } => Some(xid),
            PackedForm::Given { .. } | PackedForm::Granted => None,
            PackedForm::Other(place) => self.others[place].xid,
        });
        xids.max().flatten()
    }

    pub fn remove(&mut self, topic: &Topic) -> Option<(Topic, Membership)> {
        let place = self.place(topic).ok()?;
        let Entry { topic, packed } = self.entries.remove(place);
        Some((topic, self.membership(packed)))
    }

    /// Adds the membership in a topic, or replaces it.
    pub fn insert(&mut self, topic: Topic, membership: Membership) {
        let place = self.place(&topic);
        let entry = self.entry(topic, membership);
        match place {
            Ok(place) => self.entries[place] = entry,
            Err(place) => {
                self.entries.reserve_exact(1);
                self.entries.insert(place, entry);
            }
        }
    }

    /// The memberships that the other table doesn't have, or has with another beginning.
    pub fn without(&self, other: &Self) -> Vec<(Topic, Membership)> {
        let is_gone = |entry: &&Entry| {
            let place = other.place(&entry.topic);
            !place.is_ok_and(|place| self.is_same(entry.packed, other, other.entries[place].packed))
        };
        let gone = self.entries.iter().filter(is_gone);
        gone.map(|entry| (entry.topic.clone(), self.membership(entry.packed)))
            .collect()
    }

    fn place(&self, topic: &Topic) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| entry.topic.cmp(topic))
    }

    fn entry(&mut self, topic: Topic, membership: Membership) -> Entry {
        let packed = PackedMembership::pack(&membership).unwrap_or_else(|| {
            self.others.push(membership);
            PackedMembership(PackedMembership::OTHER + self.others.len() as u64 - 1)
        });
        Entry { topic, packed }
    }

    fn membership(&self, packed: PackedMembership) -> Membership {
        let after = |xmax| Some(Arc::new(Snapshot::new(xmax, Vec::new())));
        match packed.form() {
            PackedForm::Joined { xid, since } => Membership {
                xid: Some(xid),
                since: after(since),
            },
            PackedForm::Given { since } => Membership {
                xid: None,
                since: after(since),
            },
            PackedForm::Granted => Membership::GRANTED,
            PackedForm::Other(place) => self.others[place].clone(),
        }
    }

    fn is_same(&self, own: PackedMembership, other: &Self, others: PackedMembership) -> bool {
        match (own.form(), others.form()) {
            (PackedForm::Other(own), PackedForm::Other(others)) => {
                self.others[own] == other.others[others]
            }
            (own, others) => own == others,
        }
    }
}

/// Of several memberships in a topic, it has one.
impl FromIterator<(Topic, Membership)> for MembershipTable {
    fn from_iter<I: IntoIterator<Item = (Topic, Membership)>>(memberships: I) -> Self {
        let memberships = memberships.into_iter();
        let mut table = Self::EMPTY;
        // At once: while it grew and shrank, it would leave gaps that the next table doesn't
        // fit into.
        let most = memberships.size_hint().1.unwrap_or_default();
        table.entries.reserve_exact(most);
        for (topic, membership) in memberships {
            let entry = table.entry(topic, membership);
            table.entries.push(entry);
        }
        let entries = &mut table.entries;
        entries.sort_unstable_by(|one, other| one.topic.cmp(&other.topic));
        entries.dedup_by(|later, earlier| later.topic == earlier.topic);
        entries.shrink_to_fit();
        table.others.shrink_to_fit();
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

    /// Transaction ids as large as there are bits for, and some that are close to them.
    fn xid() -> impl Strategy<Value = u64> {
        let power = (0..u64::BITS).prop_map(|bits| 1 << bits);
        let distance = prop_oneof![0..3_u64, (1_u64 << 15) - 3..(1 << 15) + 3];
        (prop_oneof![3..20_u64, power], distance, any::<bool>()).prop_map(
            |(xid, distance, is_above)| match is_above {
                true => xid.saturating_add(distance),
                false => xid.saturating_sub(distance),
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn whatever_the_transaction_ids_a_membership_is_kept(
            (own, since) in (option::of(xid()), option::of(xid())),
            running in option::weighted(0.2, xid()),
        ) {
            let xid = own.map(Xid);
            let running = || running.into_iter().map(Xid).collect();
            let since = since.map(|xmax| Arc::new(Snapshot::new(Xid(xmax), running())));
            let bounds = [xid, since.as_ref().map(|since| since.xmax()), running().pop()];
            let membership = Membership { xid, since };
            let table: MembershipTable = [(topic(0), membership.clone())].into_iter().collect();
            prop_assert_eq!(table.get(&topic(0)), Some(membership.clone()));
            prop_assert_eq!(table.top(), xid);
            for Xid(bound) in bounds.into_iter().flatten() {
                for row in [bound.saturating_sub(1), bound, bound.saturating_add(1)].map(Xid) {
                    prop_assert_eq!(table.has(&topic(0), row), membership.has(row));
                }
            }
        }
    }

    #[test]
    fn an_entry_takes_16_bytes() {
        assert_eq!(size_of::<Entry>(), 16);
    }
}
