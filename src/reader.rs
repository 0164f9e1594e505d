//! Reads pages of the table: each one statement, so that the rows and the
//! snapshot that they are visible to belong together.

use std::{sync::Arc, time::Duration};

use tokio_postgres::{Client, Error, Row, Statement, types::Type};

use crate::{
    batch::{Batch, End, Event},
    clock::Moment,
    history::Incarnation,
    identity::{Disconnection, TicketHash},
    notification::{Expiry, Notification, UserId},
    pool::{Pool, QueryError},
    position::{Follows, Position, RowKey},
    safe_floor::Log,
    snapshot::{Snapshot, Xid},
    sql::Sql,
};

/// How long one page of a user may take.
const PAGE_LIMIT: Duration = Duration::from_secs(10);

/// How large a page may be.
#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    /// Rows at most.
    pub rows: usize,
    /// Bytes of text after which no further row is added. The row that crosses
    /// the bound is still in the page, so it holds at most this and one text
    /// (1 MiB).
    pub bytes: i64,
}

impl PageSize {
    /// Bytes of the largest text that the table's constraint allows.
    const LARGEST_TEXT: usize = 1 << 20;

    /// A page of the table's tail: large enough that reading costs little a
    /// row, small enough that it is a matter of milliseconds.
    pub const TAIL: Self = Self {
        rows: 1_000,
        bytes: 1 << 20,
    };

    /// A page of one user's catch-up, which every connection may hold at once.
    pub const USER: Self = Self {
        rows: 500,
        bytes: 256 << 10,
    };

    /// Half of it, for a network that carries no more in time; one row at least.
    pub fn halved(self) -> Self {
        Self {
            rows: (self.rows / 2).max(1),
            bytes: (self.bytes / 2).max(1),
        }
    }

    /// Bytes that a page of this size may take at most.
    pub fn most_bytes(self) -> usize {
        let texts = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        texts + Self::LARGEST_TEXT + self.rows * Event::MEMORY
    }

    /// One row more is asked for, to know whether that was all.
    fn limit(self) -> i64 {
        self.rows as i64 + 1
    }
}

/// How many of a user's last rows can be asked for at once (`replay=N`).
pub const REPLAY_ROWS: u32 = 500;

/// The first rows that are new since a position.
#[derive(Debug)]
pub struct Page {
    /// Whether writers rang after the snapshot was taken, and since which time.
    pub rings: Option<Rings>,
    /// Where the log stood.
    pub log: Log,
    /// What the statement could see.
    pub snapshot: Arc<Snapshot>,
    /// In the order of delivery.
    pub notifications: Vec<(UserId, Notification)>,
    /// Whether that was all.
    pub rest: Rest,
}

/// A time in which writers ring the doorbell. No two times bear the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings(i64);

/// Whether writers can be relied on to ring.
#[derive(Clone, Copy, Debug)]
pub struct Ringing {
    /// Since which time they do, unless somebody else was changing that.
    pub rings: Option<Rings>,
    /// Whether one is still at work that may not have rung.
    pub writing: bool,
}

/// What a page leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: the page holds all that is new.
    Nothing,
    /// More rows, the first of them of this transaction.
    From(Xid),
}

impl Rest {
    fn cuts_off(self, last: Option<Xid>) -> Option<Xid> {
        match self {
            Self::From(xid) => last.filter(|&last| last == xid),
            Self::Nothing => None,
        }
    }
}

impl Page {
    /// The transaction that the page's end cuts in two.
    pub fn cut_off(&self) -> Option<Xid> {
        let last = self.notifications.last().map(|(_, last)| last.key.xid);
        self.rest.cuts_off(last)
    }

    /// Whether the row after the last one belongs to the same transaction.
    pub fn follows(&self) -> Follows {
        if self.cut_off().is_some() {
            Follows::SameTransaction
        } else {
            Follows::Other
        }
    }
}

/// A page of one user.
#[derive(Debug)]
pub struct UserPage {
    /// In which incarnation of the server it was read.
    pub incarnation: Incarnation,
    /// The youngest transaction of which rows were removed for good.
    pub pruned: Option<Xid>,
    /// The rows.
    pub batch: Batch,
}

/// Which streams were to end since a reading before.
#[derive(Debug)]
pub struct Disconnections {
    /// In which incarnation of the server it was read.
    pub incarnation: Incarnation,
    /// Of this reading.
    pub snapshot: String,
    /// What time it was there.
    pub clock: Moment,
    /// Whose.
    pub found: Vec<Disconnection>,
}

/// Which streams were to end since the reading whose snapshot is `seen`.
///
/// # Errors
///
/// What Postgres answers.
pub async fn disconnections(
    client: &Client,
    query: &Statement,
    seen: &str,
) -> Result<Disconnections, Error> {
    let rows = client.query(query, &[&seen]).await?;
    let mut found = Vec::new();
    for row in &rows {
        let user: Option<String> = row.try_get("user_id")?;
        let ticket: Option<&[u8]> = row.try_get("ticket")?;
        if let Some(user) = user.and_then(|user| UserId::parse(&user)) {
            let ticket = ticket.and_then(TicketHash::from_bytes);
            found.push(Disconnection { user, ticket });
        }
    }
    let head = head(&rows);
    Ok(Disconnections {
        incarnation: read_incarnation(head)?,
        snapshot: head.try_get("snapshot")?,
        clock: head.try_get("clock")?,
        found,
    })
}

/// The position of a reader that begins now, and the next transaction id as of
/// the last checkpoint.
///
/// # Errors
///
/// What Postgres answers.
pub async fn tail_start(client: &Client, query: &str) -> Result<(Position, Xid), Error> {
    let row = client.query_one(query, &[]).await?;
    let snapshot: Snapshot = row.try_get("snapshot")?;
    let position = Position::after(row.try_get("top")?, &snapshot);
    Ok((position, row.try_get("checkpointed")?))
}

/// In which incarnation of the server the pool's queries run.
///
/// # Errors
///
/// [`QueryError`], also on a standby.
pub async fn incarnation(pool: &Pool) -> Result<Incarnation, QueryError> {
    let rows = pool.query(PAGE_LIMIT, include_str!("../sql/incarnation.sql"), &[]);
    Ok(read_incarnation(head(&rows.await?))?)
}

/// The first new rows of all users.
///
/// # Errors
///
/// What Postgres answers.
pub async fn tail_page(
    client: &Client,
    query: &Statement,
    position: &Position,
    size: PageSize,
) -> Result<Page, Error> {
    let rows = client
        .query(
            query,
            &[
                &position.floor(),
                &position.open_xids(),
                &position.open_reads(),
                &size.limit(),
                &size.bytes,
            ],
        )
        .await?;
    let head = head(&rows);
    let mut notifications = Vec::new();
    let rest = each_in_page(&rows, size.rows, |row, notification| {
        let user: &str = row.try_get("user_id")?;
        if let Some(user) = UserId::parse(user) {
            notifications.push((user, notification));
        }
        Ok(())
    })?;
    Ok(Page {
        rings: read_rings(head)?,
        log: Log {
            inserted: head.try_get("inserted")?,
            flushed: head.try_get("flushed")?,
        },
        snapshot: Arc::new(head.try_get("snapshot")?),
        notifications,
        rest,
    })
}

fn read_rings(row: &Row) -> Result<Option<Rings>, Error> {
    let since: Option<i64> = row.try_get("rings_since")?;
    Ok(since.map(Rings))
}

/// Has writers ring for rows of this table.
///
/// # Errors
///
/// What Postgres answers.
pub async fn fall_asleep(client: &Client, query: &Statement, table: u32) -> Result<Ringing, Error> {
    let row = client.query_one(query, &[&table]).await?;
    Ok(Ringing {
        rings: read_rings(&row)?,
        writing: row.try_get("writing")?,
    })
}

/// The first new rows of one user.
///
/// # Errors
///
/// [`QueryError`].
pub async fn user_page(
    pool: &Pool,
    sql: &Sql,
    user: &UserId,
    position: &Position,
    size: PageSize,
) -> Result<UserPage, QueryError> {
    let rows = pool
        .query(
            PAGE_LIMIT,
            &sql.user_page,
            &[
                (&position.floor(), Type::XID8),
                (&position.open_xids(), Type::XID8_ARRAY),
                (&position.open_reads(), Type::INT8_ARRAY),
                (&size.limit(), Type::INT8),
                (&size.bytes, Type::INT8),
                (&user.as_str(), Type::TEXT),
            ],
        )
        .await?;
    Ok(read_user_page(&rows, size)?)
}

/// Rows that may be read in vain each time a user comes without a position: some
/// 0.2 ms, as much as noting that nothing of them is left to deliver.
pub const READ_IN_VAIN: u32 = 100;

/// Which first page is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Backlog<'a> {
    /// What to run.
    pub query: &'a str,
    /// Whose.
    pub user: &'a UserId,
    /// How many of the user's last rows it begins with, sent or not.
    pub replay: u32,
    /// What is new since then is in it, sent or not.
    pub opened: &'a Position,
    /// The cluster that transaction ids belong to.
    pub system_identifier: i64,
    /// How many rows may be read in vain.
    pub in_vain: u32,
}

/// The first page of a user who comes without a position.
#[derive(Debug)]
pub struct BacklogPage {
    /// The position that it starts from.
    pub start: Position,
    /// The rows.
    pub page: UserPage,
    /// Nothing of the user's is left to deliver before this transaction, and too
    /// much was read in vain to find that.
    pub drained: Option<Xid>,
}

/// The first page for a user who comes without a position: what is unsent, the
/// last rows that were asked for, and all that is new since it was opened.
///
/// # Errors
///
/// [`QueryError`].
pub async fn backlog_page(
    pool: &Pool,
    wanted: Backlog<'_>,
    size: PageSize,
) -> Result<BacklogPage, QueryError> {
    let opened = wanted.opened;
    let rows = pool
        .query(
            PAGE_LIMIT,
            wanted.query,
            &[
                (&wanted.user.as_str(), Type::TEXT),
                (&i64::from(wanted.replay), Type::INT8),
                (&size.limit(), Type::INT8),
                (&size.bytes, Type::INT8),
                (&opened.floor(), Type::XID8),
                (&opened.open_xids(), Type::XID8_ARRAY),
                (&opened.open_reads(), Type::INT8_ARRAY),
                (&wanted.system_identifier, Type::INT8),
                (&i64::from(wanted.in_vain), Type::INT8),
            ],
        )
        .await?;
    let page = read_user_page(&rows, size)?;
    let batch = &page.batch;
    // What is still running may leave rows of before the first one.
    let ended = batch.snapshot.ended_below();
    let drained = match batch.events.first() {
        Some(first) => ended.min(first.notification().key.xid),
        None => ended,
    };
    let passed: Option<Xid> = head(&rows).try_get("passed")?;
    let start = match (batch.events.first(), &batch.end) {
        (Some(first), _) => Position::before(first.notification().key, &batch.snapshot),
        (None, End::CaughtUp { top }) => Position::after(*top, &batch.snapshot),
        (None, _) => Position::after(None, &batch.snapshot),
    };
    Ok(BacklogPage {
        start,
        page,
        drained: passed
            .is_some_and(|passed| passed < drained)
            .then_some(drained),
    })
}

fn read_user_page(rows: &[Row], size: PageSize) -> Result<UserPage, Error> {
    let head = head(rows);
    let mut events = Vec::new();
    let rest = each_in_page(rows, size.rows, |_, notification| {
        events.push(Event::from(notification));
        Ok(())
    })?;
    let last = events
        .last()
        .map(|event: &Event| event.notification().key.xid);
    let end = match rest {
        Rest::Nothing => End::CaughtUp {
            top: head.try_get("top")?,
        },
        Rest::From(_) => End::MorePages,
    };
    Ok(UserPage {
        incarnation: read_incarnation(head)?,
        pruned: head.try_get("pruned")?,
        batch: Batch {
            events,
            snapshot: Arc::new(head.try_get("snapshot")?),
            cut_off: rest.cuts_off(last),
            end,
        },
    })
}

/// Every row carries what holds for the whole page; where nothing is new, a
/// single one does nothing else.
pub fn head(rows: &[Row]) -> &Row {
    match rows {
        [head, ..] => head,
        [] => unreachable!("these statements answer with a row even where there is nothing"),
    }
}

/// In which incarnation of the server a statement ran, from its columns
/// `timeline` and `since`.
///
/// # Errors
///
/// If there are none.
pub fn read_incarnation(head: &Row) -> Result<Incarnation, Error> {
    Ok(Incarnation {
        timeline: head.try_get("timeline")?,
        since: head.try_get("since")?,
    })
}

/// Calls `take` for the rows of the page. A row beyond the page, by count or
/// because its text was left out, tells that there is more.
fn each_in_page(
    rows: &[Row],
    most: usize,
    mut take: impl FnMut(&Row, Notification) -> Result<(), Error>,
) -> Result<Rest, Error> {
    for (index, row) in rows.iter().enumerate() {
        let Some(xid) = row.try_get("xid")? else {
            break;
        };
        let text: Option<String> = row.try_get("text")?;
        let Some(text) = text.filter(|_| index < most) else {
            return Ok(Rest::From(xid));
        };
        let notification = Notification {
            key: RowKey {
                xid,
                id: row.try_get("id")?,
            },
            event: row.try_get("event")?,
            text,
            created_at: row.try_get("created_at")?,
            expires: Expiry::from_seconds_left(row.try_get("seconds_left")?),
        };
        take(row, notification)?;
    }
    Ok(Rest::Nothing)
}
