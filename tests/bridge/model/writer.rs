//! An application's session.

use std::{ops::Range, sync::Arc};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use super::{
    memberships::Pending,
    oracle::{Number, Window},
    program::{Topic, User},
};

#[derive(Default)]
pub struct Writer {
    pub client: Option<Arc<Client>>,
    pub open: Option<Work>,
    /// A commit that has not been waited for yet.
    pub commit: Option<Commit>,
}

/// What a transaction has done.
#[derive(Default)]
pub struct Work {
    pub rows: Vec<Range<Number>>,
    pub changes: Vec<Pending>,
    /// When the snapshot was taken that all of its statements use.
    pub snapshot: Option<Window>,
}

pub struct Commit {
    pub work: Work,
    pub began: u64,
    pub running: JoinHandle<Result<(), Error>>,
}

impl Writer {
    /// Whether it has changed this membership and may not have committed it yet.
    pub fn has_changed(&self, of: (User, Topic)) -> bool {
        let open = self.open.iter();
        let works = open.chain(self.commit.iter().map(|commit| &commit.work));
        let mut changes = works.flat_map(|work| &work.changes);
        changes.any(|pending| pending.change.of() == of)
    }
}
