//! Who must have received what. The table is the witness, read at the moments
//! that matter; nothing here waits or asks.

use std::collections::{BTreeMap, BTreeSet};

use tidings::domain::{
    position::{Position, RowKey},
    snapshot::Xid,
};

/// Each row of a program has one, with which its text begins.
pub type Number = u32;

/// A user's rows that were committed at some moment.
pub type Rows = BTreeMap<Number, Row>;

/// A row as the table shows it.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: RowKey,
    pub text: String,
    pub sent: bool,
}

/// When a row became visible: after the first moment and before the second, of
/// the program's own clock.
pub type Commits = BTreeMap<Number, (u64, u64)>;

/// Beyond so many rows a stranger's backlog may be more than one page, of which
/// only the first leaves out what was sent.
const ONE_PAGE: usize = 400;

/// A connection without an id, until the bridge has given it one.
#[derive(Debug)]
pub struct Opening {
    /// The table before it was opened.
    pub before: Rows,
    /// What the bridge had read by then, if that can be known.
    pub tail: Option<Position>,
    /// The table once the bridge had answered.
    pub answered: Rows,
    /// Postgres has crashed since, and may have undone marks: what is unsent
    /// now was perhaps sent when the bridge read its page.
    pub has_crashed: bool,
    /// Whether rows may come twice, though no crash is known of.
    pub may_repeat: bool,
}

/// The connections of a tab that are joined by `Last-Event-ID`.
#[derive(Debug)]
pub struct Chain {
    /// What was visible when it began: what comes later is owed.
    at_opening: BTreeSet<Number>,
    /// What of it is owed, since it was unsent.
    backlog: BTreeSet<Number>,
    /// What of it was sent to others, and must not come.
    forbidden: BTreeSet<Number>,
    caught_up: bool,
    may_repeat: bool,
    got: Vec<Received>,
}

/// A row as a tab got it.
#[derive(Clone, Debug)]
pub struct Received {
    pub number: Number,
    pub id: i64,
    pub text: String,
}

/// What a chain is found to have been owed and to have got, by row ids.
#[derive(Debug)]
pub struct Verdict {
    pub owed: BTreeSet<i64>,
    pub got: Vec<i64>,
}

impl Opening {
    /// The bridge has read the first page, since an id came, and this is the
    /// table afterwards. What was sent meanwhile may be in the page or not.
    pub fn settle(self, after: &Rows) -> Chain {
        let backlog = self.answered.keys().filter(|&number| {
            let row = after.get(number);
            row.is_some_and(|row| !row.sent) && !self.has_crashed
        });
        let forbidden: BTreeSet<Number> = self
            .before
            .iter()
            .filter(|(_, row)| {
                !self.has_crashed
                    && row.sent
                    && self.tail.as_ref().is_some_and(|t| !t.is_new(row.key))
            })
            .map(|(&number, _)| number)
            .collect();
        let in_one_page = after.len().saturating_sub(forbidden.len()) <= ONE_PAGE;
        Chain {
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

    /// A stranger who breaks in the middle of its backlog returns with a
    /// position, which knows nothing of what was sent to others.
    pub fn leave(&mut self) {
        if !self.caught_up {
            self.forbidden.clear();
        }
    }

    /// Postgres has crashed: marks may be undone, and rows come again.
    pub fn crash(&mut self) {
        self.may_repeat = true;
        self.forbidden.clear();
    }

    /// Judges all that came, against the table at the end. A chain that is
    /// still open has read up to the user's last row.
    pub fn judge(&self, table: &Rows, commits: &Commits, is_open: bool) -> Result<Verdict, String> {
        let mut numbers = Vec::with_capacity(self.got.len());
        for received in &self.got {
            let Some(row) = table.get(&received.number) else {
                // A crash took it back.
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
        let distinct: BTreeSet<Number> = numbers.iter().copied().collect();
        let list = |numbers: Vec<Number>| {
            let shown = numbers.iter().take(5).map(|n| (n, table[n].key));
            let shown: Vec<_> = shown.collect();
            format!("{} rows, the first are {shown:?}", numbers.len())
        };
        let owed: BTreeSet<Number> = table
            .keys()
            .filter(|number| !self.at_opening.contains(number) || self.backlog.contains(number))
            .copied()
            .collect();
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
                .filter(|&&number| !seen.insert(number))
                .copied()
                .collect();
            if !again.is_empty() {
                return Err(format!("came twice: {}", list(again)));
            }
            in_order(&numbers, table, commits)?;
        }
        let id = |number: &Number| table[number].key.id;
        Ok(Verdict {
            owed: owed
                .iter()
                .filter(|_| is_open)
                .chain(&distinct)
                .map(id)
                .collect(),
            got: numbers.iter().map(id).collect(),
        })
    }
}

/// The number of the row with this text.
pub fn number_of(text: &str) -> Result<Number, String> {
    let number = text.split(' ').next().unwrap_or_default();
    number
        .parse()
        .map_err(|_| format!("no row of the program has the text {text:?}"))
}

/// Transactions with more rows than this may be read in pieces, and later ones
/// overtake their rest: a quarter of the smallest page (`world::TAIL`).
const NEVER_CUT: usize = 5;

/// Rows of one transaction come by id. A transaction that was visible before
/// another one committed, and has the lower id, comes before it, unless it is
/// large.
fn in_order(numbers: &[Number], table: &Rows, commits: &Commits) -> Result<(), String> {
    let mut last_of: BTreeMap<Xid, i64> = BTreeMap::new();
    // The rows at which another transaction's begin.
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
    let mut sizes: BTreeMap<(u64, u64), usize> = BTreeMap::new();
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
