//! The memberships of one connection: which rows of topics it is sent.
//!
//! The hub routes rows of topics, the pages of a catch-up find rows that the hub could not
//! route, and this decides about each row when it is written. Together they deliver each
//! row that the user is owed once, whatever joins and leaves are committed in between, and
//! however late.
//!
//! One position serves rows and memberships: a membership is new to it by its transaction,
//! as a row is. What makes that exact are *late rows*: rows that the position counts as
//! seen, of a membership that it does not. A page sends them first and keeps the position,
//! so the position moves past a membership only when its late rows were sent.
//!
//! A change takes effect in two steps. [`told`](Memberships::told) takes the topic away at
//! once, so that nothing that is already queued is written. Only a page adds topics: the
//! hub makes the connection read pages, as after an overflow, and a page shows the rows and
//! the memberships in one snapshot. So a change that is read late can't put back a topic
//! that was left.

use std::sync::Arc;

use crate::{
    delivery::membership_table::MembershipTable,
    domain::{
        membership::Membership,
        notification::UserId,
        position::{Position, Rest, RowKey},
        snapshot::{Snapshot, Xid},
        topic::Topic,
    },
};

/// How many ended memberships a connection remembers. A connection that exceeds it is
/// ended, and its client returns with its id: that may repeat rows, and loses none. Twice
/// as many as the topics of a stream, so that all of them can be replaced once.
pub const ENDED_MEMBERSHIPS: usize = 2_000;

/// A change of memberships, as the tail read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// One membership began or ended.
    One {
        user: UserId,
        topic: Topic,
        /// The transaction that made the change.
        xid: Xid,
        /// The membership as the same statement sees it, which may be after later changes.
        /// `None` if the user has left.
        now: Option<Membership>,
    },
    /// Any membership of this user may have begun or ended; without a user, anyone's.
    Any { user: Option<UserId> },
}

impl MembershipChange {
    /// Whether the user may have joined a topic.
    pub fn may_join(&self) -> bool {
        match self {
            Self::One { now, .. } => now.is_some(),
            Self::Any { .. } => true,
        }
    }
}

/// What a page needs to know to find late rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateWanted {
    /// The late rows of the memberships that this shows have been sent.
    pub handled: Snapshot,
    /// Where to continue, if late rows are being read page by page.
    pub begun: Option<LatePosition>,
}

impl LateWanted {
    /// Of a reader that has handled what its position is past.
    pub fn of(position: &Position) -> Self {
        Self {
            handled: position.as_snapshot(),
            begun: None,
        }
    }
}

/// How far late rows have been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatePosition {
    /// The snapshot of the first page. Later pages take the late rows of the memberships
    /// that it shows: another one may have late rows that precede `after`.
    pub first: Arc<Snapshot>,
    /// The last late row that was sent. The zero key if none was.
    pub after: RowKey,
}

/// Which rows a page begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateRows {
    /// There are no late rows: the page has rows that are new to the position.
    None,
    /// The page has only late rows, and this is what it left of them.
    Left(Rest),
}

/// What to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Write,
    /// Its rows must not be written, and not move the position: it continued the late rows,
    /// and there were none left, so its new rows may belong to memberships whose late rows
    /// were not looked for. Or it was requested before any membership may have changed.
    ReadAgain,
}

/// The connection has to end: it has seen too many memberships end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyEnded;

/// A membership that was replaced or left while the connection had it, and which of its
/// rows the connection was sent. A later membership may have the same rows: its `since` is
/// older than the end of this one if the transaction reads an old snapshot.
#[derive(Clone, Debug)]
struct EndedMembership {
    topic: Topic,
    membership: Membership,
    /// The connection's position at that moment.
    position: Arc<Position>,
    /// If its late rows had not all been sent, up to where they were.
    late: Option<RowKey>,
    /// For a granted topic, the position from which the connection was sent its rows.
    began: Option<Arc<Position>>,
    /// Transaction ids from here on may have been assigned again in a crash.
    safe: Xid,
}

impl EndedMembership {
    /// Whether the row was sent. `is_same` tells whether a row whose transaction id may
    /// have been assigned again is the same row as then.
    fn has_sent(&self, topic: &Topic, row: RowKey, is_same: bool) -> bool {
        self.topic == *topic
            && self.membership.has(row.xid)
            && !self.position.is_new(row)
            && self.late.is_none_or(|after| row <= after)
            && self.began.as_ref().is_none_or(|began| began.is_new(row))
            && (row.xid < self.safe || is_same)
    }
}

#[derive(Debug, Default)]
pub struct Memberships {
    /// Exists only if the connection has topics or had any: most have none.
    held: Option<Box<Held>>,
    /// Set while it isn't known which topics the user has left. Then no row of a topic may
    /// be written or passed over until a page shows the memberships.
    is_outdated: bool,
    /// Exists only while the connection reads pages.
    catch_up: Option<Box<MembershipCatchUp>>,
}

#[derive(Debug, Default)]
struct Held {
    /// Topics that the connection has whether or not the user is a member.
    granted: Arc<[Topic]>,
    /// From where rows of granted topics are sent. `None` if there are none.
    began: Option<Arc<Position>>,
    current: MembershipTable,
    ended: Vec<EndedMembership>,
}

/// What a connection knows of memberships while it reads pages. A live one has handled
/// exactly what its position is past.
#[derive(Debug)]
struct MembershipCatchUp {
    /// The late rows of the memberships that this shows have been sent.
    handled: Snapshot,
    late: Option<LatePosition>,
    /// The snapshot of the last page, whose memberships the connection has.
    seen: Arc<Snapshot>,
    /// Changes since the next page was requested, which may not show them. The mailbox is
    /// what bounds them: beyond its limit it ends the connection.
    told: Vec<Arc<MembershipChange>>,
    /// Whether one of them may concern any membership.
    is_outdated: bool,
}

impl MembershipCatchUp {
    /// Without a position, [`start`](Memberships::start) says later what was handled.
    fn begin(position: Option<&Position>) -> Box<Self> {
        Box::new(Self {
            handled: position.map(Position::as_snapshot).unwrap_or_default(),
            late: None,
            seen: Arc::default(),
            told: Vec::new(),
            is_outdated: false,
        })
    }

    /// Up to where the late rows of this membership were sent, if not all were.
    fn sent_of(&self, membership: &Membership) -> Option<RowKey> {
        let nothing = RowKey { xid: Xid(0), id: 0 };
        membership
            .is_after(&self.handled)
            .then(|| match &self.late {
                Some(late) if !membership.is_after(&late.first) => late.after,
                _ => nothing,
            })
    }
}

impl Memberships {
    /// Those of a connection that has `granted` topics besides the user's memberships,
    /// without everyone's. Their rows are sent from `began` on, or from the position of the
    /// connection's first page.
    pub fn with_granted(granted: Arc<[Topic]>, began: Option<Arc<Position>>) -> Self {
        let held = || Held {
            granted: Arc::clone(&granted),
            began,
            ..Held::default()
        };
        Self {
            held: (!granted.is_empty()).then(|| Box::new(held())),
            ..Self::default()
        }
    }

    /// Call this when a page is requested, before the statement that reads it.
    pub fn request(&mut self, position: Option<&Position>) -> LateWanted {
        let catch_up = self
            .catch_up
            .get_or_insert_with(|| MembershipCatchUp::begin(position));
        catch_up.told.clear();
        catch_up.is_outdated = false;
        LateWanted {
            handled: catch_up.handled.clone(),
            begun: catch_up.late.clone(),
        }
    }

    /// The first page of a connection without an id was read from this position.
    pub fn start(&mut self, position: &Position) {
        let catch_up = self
            .catch_up
            .get_or_insert_with(|| MembershipCatchUp::begin(None));
        catch_up.handled = position.as_snapshot();
    }

    /// Applies a change that the tail has read, at once. A topic that was joined is added
    /// by the next page, which the hub makes the connection read.
    ///
    /// # Errors
    ///
    /// [`TooManyEnded`] if the connection has to end.
    pub fn told(
        &mut self,
        position: &Position,
        change: &Arc<MembershipChange>,
    ) -> Result<(), TooManyEnded> {
        let MembershipChange::One {
            topic, xid, now, ..
        } = &**change
        else {
            self.is_outdated = true;
            if let Some(catch_up) = &mut self.catch_up {
                catch_up.is_outdated = true;
            }
            return Ok(());
        };
        if let Some(catch_up) = &mut self.catch_up {
            // A page may be ahead of the tail.
            if catch_up.seen.shows(*xid) {
                return Ok(());
            }
            catch_up.told.push(Arc::clone(change));
        }
        if let Some(held) = &mut self.held
            && held.current.get(topic) != *now
            && let Some((topic, membership)) = held.current.remove(topic)
        {
            if held.granted.contains(&topic) {
                held.current.insert(topic.clone(), Membership::GRANTED);
            }
            self.end(topic, membership, &Arc::new(position.clone()));
        }
        self.check()
    }

    /// Takes over the memberships that a page's snapshot shows. Call it before its first
    /// row is written.
    ///
    /// # Errors
    ///
    /// [`TooManyEnded`] if the connection has to end.
    pub fn take(
        &mut self,
        position: &Position,
        snapshot: &Arc<Snapshot>,
        found: impl Into<MembershipTable>,
        late: LateRows,
    ) -> Result<Taken, TooManyEnded> {
        let mut found = found.into();
        let catch_up = self
            .catch_up
            .get_or_insert_with(|| MembershipCatchUp::begin(Some(position)));
        if catch_up.is_outdated {
            // The page was requested before the change.
            return Ok(Taken::ReadAgain);
        }
        self.is_outdated = false;
        for change in catch_up.told.drain(..) {
            if let MembershipChange::One {
                topic, xid, now, ..
            } = &*change
                && !snapshot.shows(*xid)
                && found.get(topic) != *now
            {
                found.remove(topic);
            }
        }
        if self.held.is_some() || found.topics().len() > 0 {
            self.replace(found, &Arc::new(position.clone()));
        }
        self.check()?;
        let Some(catch_up) = &mut self.catch_up else {
            return Ok(Taken::Write);
        };
        catch_up.seen = Arc::clone(snapshot);
        Ok(match (late, catch_up.late.take()) {
            (LateRows::None, None) => {
                catch_up.handled = Snapshot::clone(snapshot);
                Taken::Write
            }
            (LateRows::None, Some(late)) => {
                catch_up.handled = Snapshot::clone(&late.first);
                Taken::ReadAgain
            }
            (LateRows::Left(_), late) => {
                catch_up.late = late.or_else(|| {
                    Some(LatePosition {
                        first: Arc::clone(snapshot),
                        after: RowKey { xid: Xid(0), id: 0 },
                    })
                });
                Taken::Write
            }
        })
    }

    fn replace(&mut self, mut found: MembershipTable, at: &Arc<Position>) {
        let held = self.held.get_or_insert_default();
        for topic in &*held.granted {
            // A membership precedes: its rows may be late.
            if !found.contains(topic) {
                found.insert(topic.clone(), Membership::GRANTED);
            }
        }
        if !held.granted.is_empty() {
            held.began.get_or_insert_with(|| Arc::clone(at));
        }
        let gone = held.current.without(&found);
        held.current = found;
        for (topic, membership) in gone {
            self.end(topic, membership, at);
        }
    }

    /// Whether a page has to be read before any row of a topic is written or passed over.
    pub fn is_outdated(&self) -> bool {
        self.is_outdated
    }

    /// Whether to write this row now, if it is new to the position or late. `is_same` tells
    /// whether a row that may have been read before a crash is the same row.
    pub fn want(&self, topic: &Topic, row: RowKey, is_same: bool) -> bool {
        self.held.as_ref().is_some_and(|held| {
            let mut ended = held.ended.iter();
            held.current.has(topic, row.xid)
                && !ended.any(|ended| ended.has_sent(topic, row, is_same))
        })
    }

    /// A late row was written, or passed over.
    pub fn pass_late(&mut self, row: RowKey) {
        if let Some(catch_up) = &mut self.catch_up
            && let Some(late) = &mut catch_up.late
        {
            late.after = row;
        }
    }

    /// All rows of a page of late rows were passed.
    pub fn finish_late(&mut self, rest: Rest) {
        if let Some(catch_up) = &mut self.catch_up
            && rest == Rest::Nothing
            && let Some(late) = catch_up.late.take()
        {
            catch_up.handled = Snapshot::clone(&late.first);
        }
    }

    /// The youngest transaction that created one of the memberships. A position that is
    /// complete at the page's snapshot is past it too: otherwise the membership would stay
    /// new to it, and to the ids made from it, until a younger row is written.
    pub fn top(&self) -> Option<Xid> {
        self.held.as_ref()?.current.top()
    }

    /// The connection is live: its position is past all memberships that the last page
    /// showed.
    pub fn go_live(&mut self) {
        self.catch_up = None;
    }

    /// Handles a crash of Postgres, before the position falls. Memberships that were not on
    /// disk may be gone, so all of them count as ended until a page shows them again.
    ///
    /// # Errors
    ///
    /// [`TooManyEnded`] if the connection has to end.
    pub fn recover(&mut self, position: Option<&Position>, safe: Xid) -> Result<(), TooManyEnded> {
        if let Some(held) = &mut self.held {
            let at = Arc::new(position.cloned().unwrap_or_default());
            let current = std::mem::take(&mut held.current);
            for (topic, membership) in current.without(&MembershipTable::EMPTY) {
                self.end(topic, membership, &at);
            }
        }
        for ended in self.held.iter_mut().flat_map(|held| &mut held.ended) {
            ended.safe = ended.safe.min(safe);
        }
        self.catch_up = None;
        self.check()
    }

    pub fn have(&self, topic: &Topic) -> bool {
        self.held
            .as_ref()
            .is_some_and(|held| held.current.contains(topic))
    }

    /// Without everyone's.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        static NONE: MembershipTable = MembershipTable::EMPTY;
        let current = self.held.as_ref().map(|held| &held.current);
        current.unwrap_or(&NONE).topics()
    }

    fn end(&mut self, topic: Topic, membership: Membership, at: &Arc<Position>) {
        let catch_up = self.catch_up.as_ref();
        let late = catch_up.and_then(|catch_up| catch_up.sent_of(&membership));
        let is_granted = membership.xid.is_none();
        let held = self.held.get_or_insert_default();
        held.ended.push(EndedMembership {
            began: held.began.clone().filter(|_| is_granted),
            topic,
            membership,
            position: Arc::clone(at),
            late,
            safe: Xid(u64::MAX),
        });
    }

    fn check(&self) -> Result<(), TooManyEnded> {
        let ended = self.held.as_ref().map_or(0, |held| held.ended.len());
        match ended <= ENDED_MEMBERSHIPS {
            true => Ok(()),
            false => Err(TooManyEnded),
        }
    }
}

#[cfg(test)]
mod tests;
