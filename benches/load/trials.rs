//! What a server does beyond passing on rows while a client is connected. Nothing is
//! taken from documentation: each was tried in this run.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_postgres::Client;

use crate::{
    Result,
    event_stream::EventStream,
    subject::{self, Subject},
};

/// More than any of them needs for a row without load.
const PATIENCE: Duration = Duration::from_secs(3);
/// A row that hasn't arrived within this time after all the others won't arrive.
const SILENCE: Duration = Duration::from_millis(300);
/// Time to register a stream whose head has been sent.
const SETTLING: Duration = Duration::from_millis(300);
/// How long a tab stays open after its rows have arrived: longer than a page that is being
/// left, whose rows Tidings keeps for the next one (`TIDINGS_SETTLE`).
const READING: Duration = Duration::from_secs(3);
/// More than fits in the buffer of any contestant.
const MANY: u64 = 200;
/// More than a NOTIFY can carry, less than a chat message may be.
const LONG_BYTES: usize = 9_000;

/// A server on trial, which one of the trials stops and restarts.
pub trait Contestant {
    /// How to open a stream.
    fn subject(&self) -> Result<Subject>;
    /// Stops it, and restarts it on the same database.
    fn restart(
        &mut self,
        meanwhile: impl Future<Output = Result<()>>,
    ) -> impl Future<Output = Result<()>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    /// A row from before the user's first connection.
    Backlog,
    /// That row, on the next connection.
    BacklogAgain,
    /// A row that was committed while the client was disconnected.
    Resume,
    /// Many such rows.
    ResumeMany,
    /// Two rows, the first of which commits last, while the client is disconnected.
    LateCommit,
    /// A row from while the server was down.
    Restart,
    /// A row longer than a NOTIFY may be.
    Long,
    /// Whether the table shows which rows were passed on.
    Mark,
}

impl Trial {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Backlog,
        Self::BacklogAgain,
        Self::Resume,
        Self::ResumeMany,
        Self::LateCommit,
        Self::Restart,
        Self::Long,
        Self::Mark,
    ];

    /// The wording in the table.
    pub fn question(self) -> &'static str {
        match self {
            Self::Backlog => "delivers a row inserted before the user's first connection",
            Self::BacklogAgain => "and doesn't repeat it on each later connection",
            Self::Resume => "delivers a row committed while the client was disconnected",
            Self::ResumeMany => "and 200 such rows",
            Self::LateCommit => {
                "and one inserted before the last row received, but committed during the disconnect"
            }
            Self::Restart => "delivers a row inserted while the server was down",
            Self::Long => "accepts and delivers a row of 9,000 bytes",
            Self::Mark => "records in the table which rows were sent",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As desired.
    Yes,
    /// This many of the rows were missing or repeated.
    Partly {
        arrived: u64,
        of: u64,
        repeated: u64,
    },
    /// No row arrived.
    No,
    /// The application's INSERT failed.
    InsertFails,
}

impl Outcome {
    fn of(wanted: std::ops::Range<u64>, came: &[u64]) -> Self {
        let of = wanted.end - wanted.start;
        let mut distinct: Vec<u64> = came
            .iter()
            .copied()
            .filter(|row| wanted.contains(row))
            .collect();
        let all = distinct.len();
        distinct.sort_unstable();
        distinct.dedup();
        let arrived = distinct.len() as u64;
        let repeated = all as u64 - arrived;
        match (arrived, repeated) {
            (0, _) => Self::No,
            (arrived, 0) if arrived == of => Self::Yes,
            _ => Self::Partly {
                arrived,
                of,
                repeated,
            },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes => f.write_str("yes"),
            Self::No => f.write_str("no"),
            Self::InsertFails => f.write_str("the INSERT fails"),
            Self::Partly {
                arrived,
                of,
                repeated: 0,
            } => write!(f, "{arrived} of {of}"),
            Self::Partly {
                arrived,
                of,
                repeated,
            } => {
                write!(f, "{arrived} of {of}, {repeated} repeated")
            }
        }
    }
}

/// A simulated browser tab.
struct Tab {
    user: String,
    stream: EventStream,
    socket: Option<TcpStream>,
}

impl Tab {
    fn of(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            stream: EventStream::default(),
            socket: None,
        }
    }

    /// Connects, for the first time or again.
    async fn connect(&mut self, subject: &Subject) -> Result<()> {
        self.stream.restart();
        let request = (subject.request)(&self.user, self.stream.last_id());
        let mut socket = TcpStream::connect(subject.address).await?;
        socket.write_all(request.as_bytes()).await?;
        self.socket = Some(socket);
        Ok(())
    }

    /// A new tab: no last id.
    async fn open(subject: &Subject, user: &str) -> Result<Self> {
        let mut tab = Self::of(user);
        tab.connect(subject).await?;
        Ok(tab)
    }

    fn disconnect(&mut self) {
        self.socket = None;
    }

    /// The numbers of the rows that arrive: `count` of them, and any that follow at once.
    async fn rows(&mut self, count: u64) -> Result<Vec<u64>> {
        let mut rows = Vec::new();
        let mut piece = vec![0; 16 << 10];
        loop {
            let socket = self.socket.as_mut().ok_or("not connected")?;
            let patience = match rows.len() as u64 {
                came if came < count => PATIENCE,
                _ => SILENCE,
            };
            match timeout(patience, socket.read(&mut piece)).await {
                Err(_) => return Ok(rows),
                Ok(Err(_) | Ok(0)) => return Ok(rows),
                Ok(Ok(length)) => self.stream.read(&piece[..length], |event| {
                    rows.extend(subject::row_of(event.data));
                })?,
            }
        }
    }
}

/// Rows of the trials, each with its own number.
struct Rows<'a> {
    database: &'a Client,
    next: u64,
}

impl Rows<'_> {
    async fn insert(&mut self, user: &str, count: u64) -> Result<std::ops::Range<u64>> {
        let rows = self.next..self.next + count;
        self.next = rows.end;
        for row in rows.clone() {
            insert(self.database, user, &subject::text(row)).await?;
        }
        Ok(rows)
    }
}

const INSERT: &str = "insert into notifications (user_id, text) values ($1, $2)";

async fn insert(database: &Client, user: &str, text: &str) -> Result<()> {
    database.execute(INSERT, &[&user, &text]).await?;
    Ok(())
}

/// Waits until rows are passed from the table to a stream.
pub async fn until_it_works(contestant: &impl Contestant, database: &Client) -> Result<()> {
    const ATTEMPTS: u32 = 200;
    for _ in 0..ATTEMPTS {
        sleep(Duration::from_millis(100)).await;
        let Ok(mut tab) = Tab::open(&contestant.subject()?, "probe").await else {
            continue;
        };
        sleep(SETTLING).await;
        insert(database, "probe", &subject::text(0)).await?;
        if let Ok(rows) = tab.rows(1).await
            && !rows.is_empty()
        {
            return Ok(());
        }
    }
    Err("the server doesn't pass rows on".into())
}

/// Runs all trials. `other` is a second connection of the application's.
pub async fn run(
    contestant: &mut impl Contestant,
    database: &Client,
    other: &Client,
) -> Result<BTreeMap<Trial, Outcome>> {
    until_it_works(contestant, database).await?;
    let mut outcomes = BTreeMap::new();
    let mut rows = Rows { database, next: 1 };
    let subject = contestant.subject()?;

    let before = rows.insert("away", 1).await?;
    sleep(SETTLING).await;
    for trial in [Trial::Backlog, Trial::BacklogAgain] {
        let mut tab = Tab::open(&subject, "away").await?;
        let came = tab.rows(1).await?;
        let outcome = match trial {
            Trial::Backlog => Outcome::of(before.clone(), &came),
            _ if came.is_empty() => Outcome::Yes,
            _ => Outcome::No,
        };
        outcomes.insert(trial, outcome);
        sleep(READING).await;
    }
    if outcomes.get(&Trial::Backlog) == Some(&Outcome::No) {
        outcomes.remove(&Trial::BacklogAgain);
    }

    for (trial, user, count) in [
        (Trial::Resume, "briefly", 1),
        (Trial::ResumeMany, "for-long", MANY),
    ] {
        let mut tab = seen_one(&subject, user, &mut rows).await?;
        tab.disconnect();
        sleep(SETTLING).await;
        let missed = rows.insert(user, count).await?;
        sleep(SETTLING).await;
        tab.connect(&subject).await?;
        outcomes.insert(trial, Outcome::of(missed, &tab.rows(count).await?));
        sleep(READING).await;
    }

    outcomes.insert(
        Trial::LateCommit,
        late_commit(&subject, &mut rows, other).await?,
    );

    let mut tab = seen_one(&subject, "patient", &mut rows).await?;
    let mut missed = 0..0;
    let meanwhile = async {
        missed = rows.insert("patient", 1).await?;
        Ok(())
    };
    contestant.restart(meanwhile).await?;
    until_it_works(contestant, database).await?;
    let subject = contestant.subject()?;
    tab.connect(&subject).await?;
    outcomes.insert(Trial::Restart, Outcome::of(missed, &tab.rows(1).await?));

    outcomes.insert(Trial::Mark, mark(database, "briefly").await?);
    outcomes.insert(Trial::Long, long(&subject, &mut rows).await?);
    Ok(outcomes)
}

/// A tab that has received a row, so it has an id to reconnect with.
async fn seen_one(subject: &Subject, user: &str, rows: &mut Rows<'_>) -> Result<Tab> {
    let mut tab = Tab::open(subject, user).await?;
    sleep(SETTLING).await;
    rows.insert(user, 1).await?;
    match tab.rows(1).await?.len() {
        1 => Ok(tab),
        came => Err(format!("{user} should have received 1 row, but received {came}").into()),
    }
}

async fn late_commit(subject: &Subject, rows: &mut Rows<'_>, other: &Client) -> Result<Outcome> {
    let user = "late";
    let mut tab = Tab::open(subject, user).await?;
    sleep(SETTLING).await;
    let late = rows.next;
    rows.next += 1;
    other.batch_execute("begin").await?;
    insert(other, user, &subject::text(late)).await?;
    rows.insert(user, 1).await?;
    tab.rows(1).await?;
    tab.disconnect();
    sleep(SETTLING).await;
    other.batch_execute("commit").await?;
    sleep(SETTLING).await;
    tab.connect(subject).await?;
    Ok(Outcome::of(late..late + 1, &tab.rows(1).await?))
}

async fn long(subject: &Subject, rows: &mut Rows<'_>) -> Result<Outcome> {
    let user = "verbose";
    let mut tab = Tab::open(subject, user).await?;
    sleep(SETTLING).await;
    let row = rows.next;
    rows.next += 1;
    let text = "x".repeat(LONG_BYTES) + &subject::text(row);
    match insert(rows.database, user, &text).await {
        Err(_) => Ok(Outcome::InsertFails),
        Ok(()) => Ok(Outcome::of(row..row + 1, &tab.rows(1).await?)),
    }
}

/// Written so that a table without such a column returns an answer too.
async fn mark(database: &Client, user: &str) -> Result<Outcome> {
    let query = "select bool_and(to_jsonb(n) ->> 'sent_at' is not null) from notifications n \
                 where user_id = $1";
    match database.query_one(query, &[&user]).await?.get(0) {
        true => Ok(Outcome::Yes),
        false => Ok(Outcome::No),
    }
}
