//! The memberships of a program: what its writers did, and in which order.

use std::collections::BTreeMap;

use tidings::domain::snapshot::Xid;

use super::{
    oracle::{Commits, Rows, Window},
    program::{Change, Topic, User},
};

/// What was visible when a membership began, read from Postgres' text form by this model itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    xmax: u64,
    running: Vec<u64>,
}

impl Since {
    /// Parses `xmin:xmax:running,running`.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once(':')?;
        let (xmax, running) = rest.split_once(':')?;
        let running = running.split(',').filter(|xid| !xid.is_empty());
        Some(Self {
            xmax: xmax.parse().ok()?,
            running: running.map(str::parse).collect::<Result<_, _>>().ok()?,
        })
    }

    fn shows(&self, xid: Xid) -> bool {
        xid.0 < self.xmax && !self.running.contains(&xid.0)
    }
}

/// A row of `topic_subscriptions`.
#[derive(Clone, Debug)]
pub struct Membership {
    pub xid: Xid,
    pub since: Since,
    /// When `since` was taken.
    pub taken: Window,
    pub committed: Window,
    /// When its end was committed.
    pub ended: Option<Window>,
}

impl Membership {
    pub fn has(&self, xid: Xid) -> bool {
        xid == self.xid || !self.since.shows(xid)
    }
}

/// A change of a transaction that is not committed yet.
#[derive(Clone, Debug)]
pub struct Pending {
    pub change: Change,
    /// The membership that began.
    pub joined: Option<(Xid, Since, Window)>,
}

/// All memberships of a program, including those that ended.
#[derive(Debug, Default)]
pub struct Memberships(BTreeMap<(User, Topic), Vec<Membership>>);

impl Memberships {
    /// Takes over what a transaction has changed.
    pub fn commit(&mut self, mut changes: Vec<Pending>, committed: Window) {
        while let Some(first) = (!changes.is_empty()).then(|| changes.remove(0)) {
            let of = first.change.of();
            // Nobody else sees a membership that its own transaction has ended.
            if first.joined.is_some()
                && let Some(left) = changes.iter().position(|later| later.change.of() == of)
            {
                changes.remove(left);
                continue;
            }
            let all = self.0.entry(of).or_default();
            match first.joined {
                Some((xid, since, taken)) => {
                    // A restart of the server may have shown it before its writer was told.
                    let known = all
                        .iter_mut()
                        .find(|one| one.xid == xid && one.since == since);
                    if let Some(known) = known {
                        (known.taken, known.committed) = (taken, committed);
                        continue;
                    }
                    all.push(Membership {
                        xid,
                        since,
                        taken,
                        committed,
                        ended: None,
                    });
                }
                None => end(all, committed),
            }
        }
    }

    /// Compares with what a crash has left. Fails if an end that was committed is undone.
    pub fn recover(
        &mut self,
        left: &[((User, Topic), Xid, Since)],
        now: u64,
    ) -> Result<(), String> {
        for (of, all) in &mut self.0 {
            let still = left.iter().find(|one| one.0 == *of);
            for one in all {
                let is_there =
                    still.is_some_and(|(_, xid, since)| *xid == one.xid && *since == one.since);
                match (is_there, one.ended) {
                    (true, Some(_)) => return Err(format!("a crash has undone the end of {of:?}")),
                    (false, None) => one.ended = Some((0, now)),
                    _ => {}
                }
            }
        }
        // The writer was not told that these are committed.
        for (of, xid, since) in left {
            let all = self.0.entry(*of).or_default();
            if !all.iter().any(|one| one.ended.is_none()) {
                all.push(Membership {
                    xid: *xid,
                    since: since.clone(),
                    taken: (0, now),
                    committed: (0, now),
                    ended: None,
                });
            }
        }
        Ok(())
    }

    pub fn now(&self, user: User, topic: Topic) -> Option<&Membership> {
        let all = self.0.get(&(user, topic))?;
        all.iter().find(|one| one.ended.is_none())
    }

    /// Those to which rows of this transaction belong.
    pub fn with(&self, user: User, topic: Topic, xid: Xid) -> impl Iterator<Item = &Membership> {
        let all = self.0.get(&(user, topic)).into_iter().flatten();
        all.filter(move |one| one.has(xid))
    }

    /// Whether the user may receive a row of this transaction from a bridge that knows everything
    /// that was visible at `known`.
    pub fn allow(&self, user: User, topic: Topic, xid: Xid, known: u64) -> bool {
        self.with(user, topic, xid)
            .any(|one| one.ended.is_none_or(|(_, gone)| known <= gone))
    }

    /// Checks each `since` against the order in which things were done.
    pub fn judge(&self, table: &Rows, commits: &Commits) -> Result<(), String> {
        for ((user, topic), all) in &self.0 {
            for one in all {
                for (number, row) in table.iter().filter(|(_, row)| row.topic == Some(*topic)) {
                    let Some(&(began, visible)) = commits.get(number) else {
                        continue;
                    };
                    let is_own = row.key.xid == one.xid;
                    let wrong = match one.has(row.key.xid) {
                        true => visible < one.taken.0 && !is_own,
                        false => began > one.taken.1 || is_own,
                    };
                    if wrong {
                        return Err(format!(
                            "{user:?} joined {topic:?} as {one:?}: wrong for {row:?}, which was \
                             committed within {began}..{visible}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

fn end(all: &mut [Membership], ended: Window) {
    if let Some(last) = all.iter_mut().find(|one| one.ended.is_none()) {
        last.ended = Some(ended);
    }
}
