//! Reads pages of the table: each one statement, so that the rows and the
//! snapshot that they are visible to belong together.

use std::sync::Arc;

use tokio_postgres::{Client, Error, Row, Statement};

use crate::{
    batch::{Batch, End, Event},
    notification::{Expiry, Notification, UserId},
    position::{Follows, Position, RowKey},
    snapshot::{Snapshot, Xid},
};

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
    /// What the statement could see.
    pub snapshot: Arc<Snapshot>,
    /// In the order of delivery.
    pub notifications: Vec<(UserId, Notification)>,
    /// Whether that was all.
    pub rest: Rest,
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

/// The position of a reader that begins now.
///
/// # Errors
///
/// What Postgres answers.
pub async fn tail_start(client: &Client, query: &str) -> Result<Position, Error> {
    let row = client.query_one(query, &[]).await?;
    let snapshot: Snapshot = row.try_get("snapshot")?;
    Ok(Position::after(row.try_get("top")?, &snapshot))
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
    let snapshot = Arc::new(snapshot(&rows)?);
    let mut notifications = Vec::new();
    let rest = each_in_page(&rows, size.rows, |row, notification| {
        let user: &str = row.try_get("user_id")?;
        if let Some(user) = UserId::parse(user) {
            notifications.push((user, notification));
        }
        Ok(())
    })?;
    Ok(Page {
        snapshot,
        notifications,
        rest,
    })
}

/// The first new rows of one user.
///
/// # Errors
///
/// What Postgres answers.
pub async fn user_page(
    client: &Client,
    query: &Statement,
    user: &UserId,
    position: &Position,
    size: PageSize,
) -> Result<Batch, Error> {
    let rows = client
        .query(
            query,
            &[
                &position.floor(),
                &position.open_xids(),
                &position.open_reads(),
                &size.limit(),
                &size.bytes,
                &user.as_str(),
            ],
        )
        .await?;
    user_batch(&rows, size)
}

/// The first page for a user who comes without a position: what is unsent, the
/// last `replay` rows, sent or not, and all that is new since `opened`. Also the
/// position that it starts from.
///
/// # Errors
///
/// What Postgres answers.
pub async fn backlog_page(
    client: &Client,
    query: &Statement,
    user: &UserId,
    replay: u32,
    opened: &Position,
    size: PageSize,
) -> Result<(Position, Batch), Error> {
    let rows = client
        .query(
            query,
            &[
                &user.as_str(),
                &i64::from(replay),
                &size.limit(),
                &size.bytes,
                &opened.floor(),
                &opened.open_xids(),
                &opened.open_reads(),
            ],
        )
        .await?;
    let batch = user_batch(&rows, size)?;
    let start = match (batch.events.first(), &batch.end) {
        (Some(first), _) => Position::before(first.notification().key, &batch.snapshot),
        (None, End::CaughtUp { top }) => Position::after(*top, &batch.snapshot),
        (None, _) => Position::after(None, &batch.snapshot),
    };
    Ok((start, batch))
}

fn user_batch(rows: &[Row], size: PageSize) -> Result<Batch, Error> {
    let snapshot = Arc::new(snapshot(rows)?);
    let top = match rows.first() {
        Some(row) => row.try_get("top")?,
        None => None,
    };
    let mut events = Vec::new();
    let rest = each_in_page(rows, size.rows, |_, notification| {
        events.push(Event::from(notification));
        Ok(())
    })?;
    let last = events
        .last()
        .map(|event: &Event| event.notification().key.xid);
    let end = match rest {
        Rest::Nothing => End::CaughtUp { top },
        Rest::From(_) => End::MorePages,
    };
    Ok(Batch {
        events,
        snapshot,
        cut_off: rest.cuts_off(last),
        end,
    })
}

/// Every row carries the snapshot; where nothing is new, a single one does.
fn snapshot(rows: &[Row]) -> Result<Snapshot, Error> {
    rows.first()
        .map_or(Ok(Snapshot::default()), |row| row.try_get("snapshot"))
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
