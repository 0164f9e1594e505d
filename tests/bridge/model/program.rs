//! The steps of a random program.

use proptest::{collection, prelude::*};

/// Application sessions, each with at most one open transaction.
pub const WRITERS: usize = 3;

/// Bridges on the same database.
pub const BRIDGES: usize = 2;

/// The topics that a tab asks for; all of its user's, if it names none.
pub type Asked = Option<&'static [Topic]>;

/// The user of each tab, and what it asks for. Carol never connects, and joins nothing.
pub const TABS: [(User, Asked); 5] = [
    (User::Alice, None),
    (User::Alice, None),
    (User::Alice, Some(&[Topic::First])),
    (User::Bob, None),
    (User::Bob, Some(&[Topic::Second, Topic::Watched])),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    Alice,
    Bob,
    Carol,
}

impl User {
    pub const ALL: [Self; 3] = [Self::Alice, Self::Bob, Self::Carol];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    First,
    Second,
    /// Memberships in it are copied from a table of the application.
    Watched,
    /// All users have it.
    Everyone,
}

impl Topic {
    pub const ALL: [Self; 4] = [Self::First, Self::Second, Self::Watched, Self::Everyone];
}

/// Whom rows are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// All users in turn.
    Users,
    User(User),
    Topic(Topic),
}

/// What happens to a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Join(User, Topic),
    Leave(User, Topic),
}

impl Change {
    pub fn of(self) -> (User, Topic) {
        match self {
            Self::Join(user, topic) | Self::Leave(user, topic) => (user, topic),
        }
    }
}

/// The next step of a program. A step that is impossible in the current state (a commit without a
/// transaction, leaving with a tab that is not connected) does nothing, so that any part of a
/// program is also a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Begins a transaction that sees the present until its end.
    BeginRepeatableRead {
        writer: usize,
    },
    /// Inserts in the writer's transaction, which begins if none is open.
    Insert {
        writer: usize,
        to: To,
        rows: u32,
    },
    /// The same in a savepoint, which is released or rolled back to.
    InsertInSavepoint {
        writer: usize,
        to: To,
        kept: bool,
    },
    /// Changes a membership in the writer's transaction, which begins if none is open. Nothing
    /// happens while another writer's transaction has changed the same one.
    Change {
        writer: usize,
        change: Change,
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
        to: To,
        rows: u32,
    },
    /// Changes a membership in its own implicit transaction.
    ChangeAtOnce {
        change: Change,
    },
    /// Deletes the positions at which users continue who come without an id.
    LoseCursors,

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
    /// Waits until all rows that were read are marked, and until the bridges have noticed which
    /// tabs have left.
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

/// What programs consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    Everything,
    /// Mostly changes of memberships, with transactions that overlap.
    Memberships,
    /// Also steps that disturb the Postgres server itself.
    Crashes,
    /// Neither topics nor memberships, so that bridges answer from their recent rows.
    OwnRows,
    /// Also with steps that disturb the server.
    OwnRowsAndCrashes,
}

pub fn programs(mix: Mix) -> BoxedStrategy<Vec<Step>> {
    match mix {
        Mix::Everything => collection::vec(step(), 1..40).boxed(),
        Mix::Memberships => collection::vec(membership_step(), 20..120).boxed(),
        Mix::Crashes => {
            let step = prop_oneof![9 => step(), 5 => membership_step(), 1 => server_step()];
            collection::vec(step, 1..60).boxed()
        }
        Mix::OwnRows => collection::vec(own_step(), 1..40).boxed(),
        Mix::OwnRowsAndCrashes => {
            let step = prop_oneof![14 => own_step(), 1 => server_step()];
            collection::vec(step, 1..60).boxed()
        }
    }
}

/// A step without topics and memberships.
fn own_step() -> impl Strategy<Value = Step> {
    let of_user = |to| match to {
        To::Topic(Topic::First | Topic::Second) => To::User(User::Alice),
        To::Topic(_) => To::User(User::Bob),
        To::Users | To::User(_) => to,
    };
    step().prop_map(move |step| match step {
        Step::Insert { writer, to, rows } => Step::Insert {
            writer,
            to: of_user(to),
            rows,
        },
        Step::InsertInSavepoint { writer, to, kept } => Step::InsertInSavepoint {
            writer,
            to: of_user(to),
            kept,
        },
        Step::Send { to, rows } => Step::Send {
            to: of_user(to),
            rows,
        },
        Step::Change { writer, .. } => Step::Commit {
            writer,
            waits: false,
        },
        Step::ChangeAtOnce { .. } | Step::LoseCursors => Step::Read { tab: 0, rows: 1 },
        step => step,
    })
}

fn step() -> BoxedStrategy<Step> {
    let writer = || 0..WRITERS;
    let tab = || 0..TABS.len();
    let bridge = || 0..BRIDGES;
    prop_oneof![
        1 => writer().prop_map(|writer| Step::BeginRepeatableRead { writer }),
        8 => (writer(), to(), rows()).prop_map(|(writer, to, rows)| Step::Insert { writer, to, rows }),
        2 => (writer(), to(), any::<bool>()).prop_map(|(writer, to, kept)| Step::InsertInSavepoint { writer, to, kept }),
        6 => (writer(), change()).prop_map(|(writer, change)| Step::Change { writer, change }),
        6 => (writer(), any::<bool>()).prop_map(|(writer, waits)| Step::Commit { writer, waits }),
        1 => writer().prop_map(|writer| Step::RollBack { writer }),
        5 => (to(), rows()).prop_map(|(to, rows)| Step::Send { to, rows }),
        6 => change().prop_map(|change| Step::ChangeAtOnce { change }),
        1 => Just(Step::LoseCursors),
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

/// Little else than what decides which rows of topics are owed, and in which order it is read.
fn membership_step() -> BoxedStrategy<Step> {
    let writer = || 0..WRITERS;
    let tab = || 0..TABS.len();
    let to_topic = || prop::sample::select(Topic::ALL.to_vec()).prop_map(To::Topic);
    prop_oneof![
        2 => writer().prop_map(|writer| Step::BeginRepeatableRead { writer }),
        8 => (writer(), to_topic(), 1..3u32).prop_map(|(writer, to, rows)| Step::Insert { writer, to, rows }),
        10 => (writer(), change()).prop_map(|(writer, change)| Step::Change { writer, change }),
        7 => (writer(), any::<bool>()).prop_map(|(writer, waits)| Step::Commit { writer, waits }),
        1 => writer().prop_map(|writer| Step::RollBack { writer }),
        8 => (to_topic(), 1..3u32).prop_map(|(to, rows)| Step::Send { to, rows }),
        4 => change().prop_map(|change| Step::ChangeAtOnce { change }),
        1 => Just(Step::LoseCursors),
        8 => (tab(), 0..BRIDGES).prop_map(|(tab, bridge)| Step::Connect { tab, bridge }),
        9 => (tab(), 0..4usize).prop_map(|(tab, rows)| Step::Read { tab, rows }),
        3 => tab().prop_map(|tab| Step::Reset { tab }),
        2 => tab().prop_map(|tab| Step::Close { tab }),
        2 => step(),
    ]
    .boxed()
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        2 => Just(To::Users),
        2 => prop::sample::select(User::ALL.to_vec()).prop_map(To::User),
        5 => prop::sample::select(Topic::ALL.to_vec()).prop_map(To::Topic),
    ]
}

/// More joins than leaves: a row that nobody is owed shows little.
fn change() -> impl Strategy<Value = Change> {
    let user = prop_oneof![Just(User::Alice), Just(User::Bob)];
    let topic = prop_oneof![
        Just(Topic::First),
        Just(Topic::Second),
        Just(Topic::Watched)
    ];
    (user, topic, prop::bool::weighted(0.65)).prop_map(|(user, topic, joins)| match joins {
        true => Change::Join(user, topic),
        false => Change::Leave(user, topic),
    })
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
