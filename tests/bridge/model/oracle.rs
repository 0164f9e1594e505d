//! Which rows each tab must have received. The oracle is given the contents of the table at
//! the relevant moments; nothing here waits or queries.

use std::collections::{BTreeMap, BTreeSet};

use tidings::domain::{
    position::{Position, RowKey},
    snapshot::Xid,
};

use super::{
    memberships::{Membership, Memberships},
    program::{Asked, Topic, User},
};

/// Every row of a program has a number; its text begins with it.
pub type Number = u32;

/// After the first time and before the second, by the program's own clock.
pub type Window = (u64, u64);

/// A user's rows that were committed at some moment, and those of all topics.
pub type Rows = BTreeMap<Number, Row>;

/// A row as the table shows it.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: RowKey,
    pub text: String,
    pub sent: bool,
    /// `None` if it is the user's own.
    pub topic: Option<Topic>,
}

/// When a row became visible.
pub type Commits = BTreeMap<Number, Window>;

/// What is known at the end of a program.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub table: &'a Rows,
    pub commits: &'a Commits,
    pub memberships: &'a Memberships,
}

/// What other streams of the user may have been sent before a client without an id was sent its
/// first one. The user's cursor may be past it.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// When the last of these streams was open.
    pub until: u64,
    /// The only rows that may have settled, if that is known.
    pub settled: Option<BTreeSet<Number>>,
}

impl Elsewhere {
    /// By any of these memberships, to which the row belongs: the user may have left since, and
    /// joined again in a transaction that saw the topic as it was before the row.
    fn may_have<'a>(
        &self,
        number: Number,
        mut memberships: impl Iterator<Item = &'a Membership>,
        facts: Facts<'_>,
    ) -> bool {
        let (committed, _) = facts.commits.get(&number).copied().unwrap_or_default();
        committed < self.until
            && memberships.any(|membership| membership.committed.0 < self.until)
            && self
                .settled
                .as_ref()
                .is_none_or(|all| all.contains(&number))
    }
}

/// With more rows than this, the backlog of a client without a last event id may take more than one
/// page, and only the first page leaves out rows that are already sent.
const ONE_PAGE: usize = 400;

/// A connection without an id, until the bridge has sent one.
#[derive(Debug)]
pub struct Opening {
    /// The table before the connection was opened.
    pub before: Rows,
    /// The bridge's position at that time, if it can be known.
    pub tail: Option<Position>,
    /// The table after the bridge had responded.
    pub answered: Rows,
    /// Postgres has crashed since and may have lost marks: rows that are unsent now may have been
    /// sent when the bridge read its page.
    pub has_crashed: bool,
    /// Whether rows may be repeated although no crash is known.
    pub may_repeat: bool,
}

/// The connections of a tab that are linked by `Last-Event-ID`.
#[derive(Debug)]
pub struct Chain {
    user: User,
    asked: Asked,
    elsewhere: Elsewhere,
    /// The rows that were visible when it began. All later rows are owed.
    at_opening: BTreeSet<Number>,
    /// Those of them that are owed because they were unsent.
    backlog: BTreeSet<Number>,
    /// Those of them that were sent to others and must not be delivered.
    forbidden: BTreeSet<Number>,
    caught_up: bool,
    may_repeat: bool,
    got: Vec<Received>,
}

/// A row as a tab received it.
#[derive(Clone, Debug)]
pub struct Received {
    /// When the connection was opened. No two connections have the same time.
    pub opened: u64,
    pub number: Number,
    pub id: i64,
    pub text: String,
}

/// The rows that a chain was owed and those that it received, by row id.
#[derive(Debug)]
pub struct Verdict {
    pub owed: BTreeSet<i64>,
    pub got: Vec<i64>,
}

impl Opening {
    /// Call this once the bridge has sent an id, which means that it has read the first page.
    /// `after` is the table afterwards. The page may or may not contain rows that were sent in the
    /// meantime.
    pub fn settle(self, (user, asked): (User, Asked), after: &Rows, elsewhere: Elsewhere) -> Chain {
        let backlog = self.answered.keys().filter(|&number| {
            let row = after.get(number);
            row.is_some_and(|row| !row.sent && row.topic.is_none()) && !self.has_crashed
        });
        let forbidden: BTreeSet<Number> = self
            .before
            .iter()
            .filter(|(_, row)| {
                !self.has_crashed
                    && row.topic.is_none()
                    && row.sent
                    && self.tail.as_ref().is_some_and(|t| !t.is_new(row.key))
            })
            .map(|(&number, _)| number)
            .collect();
        let in_one_page = after.len().saturating_sub(forbidden.len()) <= ONE_PAGE;
        Chain {
            user,
            asked,
            elsewhere,
            backlog: backlog.copied().collect(),
            at_opening: self.answered.into_keys().collect(),
            forbidden: if in_one_page {
                forbidden
            } else {
                BTreeSet::new()
            },
            caught_up: false,
            may_repeat: self.may_repeat || self.has_crashed,
            got: Vec::new(),
        }
    }
}

impl Chain {
    pub fn receive(&mut self, row: Received) {
        self.got.push(row);
    }

    pub fn received(&self) -> &[Received] {
        &self.got
    }

    pub fn catch_up(&mut self) {
        self.caught_up = true;
    }

    /// A new client that disconnects in the middle of its backlog returns with a position, which
    /// doesn't record what was sent to others.
    pub fn leave(&mut self) {
        if !self.caught_up {
            self.forbidden.clear();
        }
    }

    /// Postgres has crashed: marks may be lost, so rows may be repeated.
    pub fn crash(&mut self) {
        self.may_repeat = true;
        self.forbidden.clear();
    }

    /// Checks everything that was received against the final table. A chain that is still open has
    /// read up to the user's last row.
    pub fn judge(&self, facts: Facts<'_>, is_open: bool) -> Result<Verdict, String> {
        let Facts { table, commits, .. } = facts;
        let mut numbers = Vec::with_capacity(self.got.len());
        for received in &self.got {
            let Some(row) = table.get(&received.number) else {
                // A crash undid the row.
                if self.may_repeat {
                    continue;
                }
                return Err(format!(
                    "{received:?} came, which is not in the table for it"
                ));
            };
            if row.text != received.text || row.key.id != received.id {
                return Err(format!("{received:?} came for {row:?}"));
            }
            numbers.push(received.number);
        }
        self.judge_topics(facts)?;
        let distinct: BTreeSet<Number> = numbers.iter().copied().collect();
        let list = |numbers: Vec<Number>| {
            let shown = numbers.iter().take(5);
            let shown = shown.map(|n| (n, table[n].topic, table[n].key, commits.get(n)));
            let shown: Vec<_> = shown.collect();
            format!("{} rows, the first are {shown:?}", numbers.len())
        };
        let owed = table
            .iter()
            .filter(|(number, row)| self.owes(**number, row, facts));
        let owed: BTreeSet<Number> = owed.map(|(&number, _)| number).collect();
        let lost: Vec<_> = owed.difference(&distinct).copied().collect();
        if is_open && !lost.is_empty() {
            return Err(format!("lost {}", list(lost)));
        }
        let forbidden: Vec<_> = distinct.intersection(&self.forbidden).copied().collect();
        if !forbidden.is_empty() {
            return Err(format!("sent to others before: {}", list(forbidden)));
        }
        if !self.may_repeat {
            let mut seen = BTreeSet::new();
            let again: Vec<_> = numbers
                .iter()
                .filter(|&&number| !may_be_late(table[&number].topic) && !seen.insert(number))
                .copied()
                .collect();
            if !again.is_empty() {
                return Err(format!("came twice: {}", list(again)));
            }
            numbers.retain(|number| !may_be_late(table[number].topic));
            in_order(&numbers, table, commits)?;
        }
        let id = |number: &Number| table[number].key.id;
        let got = self
            .got
            .iter()
            .filter(|row| table.contains_key(&row.number));
        Ok(Verdict {
            owed: owed
                .iter()
                .filter(|_| is_open)
                .chain(&distinct)
                .map(id)
                .collect(),
            got: got.map(|row| row.id).collect(),
        })
    }

    /// Whether the row must have come by now.
    fn owes(&self, number: Number, row: &Row, facts: Facts<'_>) -> bool {
        let is_later = !self.at_opening.contains(&number);
        match row.topic {
            None => is_later || self.backlog.contains(&number),
            Some(topic) if !wants(self.asked, topic) => false,
            // Without a cursor, from the present on.
            Some(Topic::Everyone) => is_later,
            Some(topic) => {
                let now = facts.memberships.now(self.user, topic);
                let all = facts.memberships.with(self.user, topic, row.key.xid);
                now.is_some_and(|now| now.has(row.key.xid))
                    && (is_later || !self.elsewhere.may_have(number, all, facts))
            }
        }
    }

    /// Each row of a topic must be one that the user had when the bridge wrote it, and no row may
    /// come twice in one connection.
    fn judge_topics(&self, facts: Facts<'_>) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let (mut opened, mut known) = (0, 0);
        for received in &self.got {
            if received.opened != opened {
                (opened, known) = (received.opened, received.opened);
                seen.clear();
            }
            // The bridge has read this row, and so it knows which memberships had ended before.
            let (began, _) = facts
                .commits
                .get(&received.number)
                .copied()
                .unwrap_or_default();
            known = known.max(began);
            let Some(row) = facts.table.get(&received.number) else {
                continue;
            };
            if !seen.insert(received.number) && !self.may_repeat {
                return Err(format!("{received:?} came twice in one connection"));
            }
            let Some(topic) = row.topic else {
                continue;
            };
            let may = topic == Topic::Everyone
                || facts
                    .memberships
                    .allow(self.user, topic, row.key.xid, known);
            if !may || !wants(self.asked, topic) {
                return Err(format!(
                    "{received:?} came, which is of no topic that the user had at {known}: {row:?}"
                ));
            }
        }
        Ok(())
    }
}

fn wants(asked: Asked, topic: Topic) -> bool {
    asked.is_none_or(|asked| asked.contains(&topic))
}

/// Whether rows of this topic can be late rows: rows that an id counts as seen, of a membership
/// that it does not. They come when the membership is visible, and again if the connection breaks
/// before they were all sent.
fn may_be_late(topic: Option<Topic>) -> bool {
    topic.is_some_and(|topic| topic != Topic::Everyone)
}

/// The number of the row with this text.
pub fn number_of(text: &str) -> Result<Number, String> {
    let number = text.split(' ').next().unwrap_or_default();
    number
        .parse()
        .map_err(|_| format!("no row of the program has the text {text:?}"))
}

/// Transactions with more rows than this may be read in several pieces, so that later transactions
/// overtake the rest. A quarter of the smallest page (`world::TAIL`).
const NEVER_CUT: usize = 5;

/// Rows of one transaction are ordered by id. A transaction that was visible before another one
/// committed and has the lower transaction id comes first, unless it is large.
fn in_order(numbers: &[Number], table: &Rows, commits: &Commits) -> Result<(), String> {
    let mut last_of: BTreeMap<Xid, i64> = BTreeMap::new();
    // The first row of each run of rows from the same transaction.
    let mut runs: Vec<Number> = Vec::new();
    let mut before = None;
    for &number in numbers {
        let RowKey { xid, id } = table[&number].key;
        if let Some(last) = last_of.insert(xid, id)
            && last > id
        {
            return Err(format!("row {id} came after row {last}, both of {xid:?}"));
        }
        if before.replace(xid) != Some(xid) {
            runs.push(number);
        }
    }
    let mut sizes: BTreeMap<Window, usize> = BTreeMap::new();
    for &commit in commits.values() {
        *sizes.entry(commit).or_default() += 1;
    }
    for (index, later) in runs.iter().enumerate() {
        let size = commits.get(later).and_then(|commit| sizes.get(commit));
        if size.is_some_and(|&size| size > NEVER_CUT) {
            continue;
        }
        for earlier in &runs[..index] {
            let (Some(&(began, _)), Some(&(_, visible))) =
                (commits.get(earlier), commits.get(later))
            else {
                continue;
            };
            if visible < began && table[later].key.xid < table[earlier].key.xid {
                return Err(format!(
                    "{:?} came before {:?}, which was visible earlier",
                    table[earlier].key, table[later].key
                ));
            }
        }
    }
    Ok(())
}
