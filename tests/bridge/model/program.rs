//! The steps of a random program.

use proptest::{collection, option, prelude::*};

/// Application sessions, each with at most one open transaction.
pub const WRITERS: usize = 3;

/// Bridges on the same database.
pub const BRIDGES: usize = 2;

/// The user of each tab. Carol never connects.
pub const TABS: [User; 5] = [User::Alice, User::Alice, User::Alice, User::Bob, User::Bob];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    Alice,
    Bob,
    Carol,
}

impl User {
    pub const ALL: [Self; 3] = [Self::Alice, Self::Bob, Self::Carol];
}

/// The next step of a program. A step that is impossible in the current state (a commit without a
/// transaction, leaving with a tab that is not connected) does nothing, so that any part of a
/// program is also a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Inserts in the writer's transaction, which begins if none is open: for this user, or for all
    /// users in turn.
    Insert {
        writer: usize,
        user: Option<User>,
        rows: u32,
    },
    /// The same in a savepoint, which is released or rolled back to.
    InsertInSavepoint {
        writer: usize,
        user: Option<User>,
        kept: bool,
    },
    /// Unless `waits` is set, the next steps don't wait until it has finished.
    Commit {
        writer: usize,
        waits: bool,
    },
    RollBack {
        writer: usize,
    },
    /// Inserts in its own implicit transaction.
    Send {
        user: Option<User>,
        rows: u32,
    },

    /// A tab connects to a bridge, for the first time or with its last id. It first leaves the
    /// bridge that it is connected to.
    Connect {
        tab: usize,
        bridge: usize,
    },
    /// A tab reads this many rows, or all that there are. With 0, it reads up to its first id.
    Read {
        tab: usize,
        rows: usize,
    },
    /// A tab resets its connection, including unread bytes, and keeps its id.
    Reset {
        tab: usize,
    },
    /// A tab is closed for good. It comes back as a new client.
    Close {
        tab: usize,
    },

    /// A bridge stops gracefully.
    Stop {
        bridge: usize,
    },
    /// A bridge ends without being waited for. If it runs as a separate process, it is killed.
    Kill {
        bridge: usize,
    },
    Start {
        bridge: usize,
    },
    /// Waits until all rows that were read are marked.
    Settle,

    /// Postgres terminates the bridges' listening sessions.
    EndListeners,
    /// Postgres terminates all sessions of the bridges.
    EndSessions,
    /// Postgres restarts cleanly.
    Restart,
    /// Postgres stops immediately and recovers.
    Crash,
    /// One backend is killed, so Postgres restarts by itself.
    KillBackend,
}

/// Programs, with or without steps that disturb the Postgres server itself.
pub fn programs(hurt_the_server: bool) -> BoxedStrategy<Vec<Step>> {
    if hurt_the_server {
        collection::vec(prop_oneof![14 => step(), 1 => server_step()], 1..60).boxed()
    } else {
        collection::vec(step(), 1..40).boxed()
    }
}

fn step() -> BoxedStrategy<Step> {
    let writer = || 0..WRITERS;
    let tab = || 0..TABS.len();
    let bridge = || 0..BRIDGES;
    let user = || option::weighted(0.6, prop::sample::select(User::ALL.to_vec()));
    prop_oneof![
        8 => (writer(), user(), rows()).prop_map(|(writer, user, rows)| Step::Insert { writer, user, rows }),
        2 => (writer(), user(), any::<bool>()).prop_map(|(writer, user, kept)| Step::InsertInSavepoint { writer, user, kept }),
        6 => (writer(), any::<bool>()).prop_map(|(writer, waits)| Step::Commit { writer, waits }),
        1 => writer().prop_map(|writer| Step::RollBack { writer }),
        5 => (user(), rows()).prop_map(|(user, rows)| Step::Send { user, rows }),
        8 => (tab(), bridge()).prop_map(|(tab, bridge)| Step::Connect { tab, bridge }),
        8 => (tab(), 0..6usize).prop_map(|(tab, rows)| Step::Read { tab, rows }),
        3 => tab().prop_map(|tab| Step::Reset { tab }),
        2 => tab().prop_map(|tab| Step::Close { tab }),
        1 => bridge().prop_map(|bridge| Step::Stop { bridge }),
        1 => bridge().prop_map(|bridge| Step::Kill { bridge }),
        2 => bridge().prop_map(|bridge| Step::Start { bridge }),
        2 => Just(Step::Settle),
        1 => Just(Step::EndListeners),
        1 => Just(Step::EndSessions),
    ]
    .boxed()
}

/// Usually a few; occasionally more than fit in a page and a mailbox.
fn rows() -> impl Strategy<Value = u32> {
    prop_oneof![24 => 1..5u32, 1 => Just(700), 1 => Just(1_300)]
}

fn server_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Restart),
        Just(Step::Crash),
        Just(Step::KillBackend)
    ]
}
