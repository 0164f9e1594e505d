//! Reads pages of the table: each one statement, so that the rows and the
//! snapshot that they are visible to belong together.

use std::sync::Arc;

use tokio_postgres::{Client, Error, Row, Statement, types::Type};
use tracing::debug;

use crate::{
    delivery::batch::{Batch, End, Event},
    domain::{
        clock::Moment,
        durable_floor::Log,
        history::{Incarnation, Since},
        identity::Disconnection,
        notification::{Expiry, Notification, UserId},
        position::{Position, Rest, RowKey, Unread},
        snapshot::{Snapshot, Xid},
    },
    postgres::{
        pool::{Pool, QueryError, READ_LIMIT, first_row},
        queries::Sql,
    },
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
        texts + TEXT_BYTES + self.rows * Event::MEMORY
    }

    /// What each of so many transactions gets that are read in pieces.
    fn shared_by(self, transactions: usize) -> Self {
        let transactions = transactions.max(1);
        Self {
            rows: (self.rows / transactions).max(1),
            bytes: (self.bytes / transactions as i64).max(1),
        }
    }

    /// What other transactions get meanwhile. It comes on top, so that the large
    /// ones take no longer.
    fn beside(self) -> Self {
        Self {
            rows: (self.rows / BESIDE).max(1),
            bytes: (self.bytes / BESIDE as i64).max(1),
        }
    }

    /// One row more is asked for, to know whether that was all.
    fn limit(self) -> i64 {
        self.rows as i64 + 1
    }
}

/// While transactions are read in pieces, other rows get one page in this many on
/// top: 250 rows, so that with pages that take some 20 ms more than ten thousand a
/// second overtake a large transaction. A transaction that fits into that is never
/// cut then, and no later one overtakes it.
const BESIDE: usize = 4;

/// Transactions that are read in pieces at once, each of which may add a text to a
/// page: 16 MiB at most. While there are so many, one of them has to be read to its
/// end before another begins. An event's id can name four times as many.
pub const MOST_BEGUN: usize = 16;

/// Bytes of a text at most, as the column's constraint has it. The queries leave
/// larger ones out.
const TEXT_BYTES: usize = 1 << 20;

/// Bytes of an event's name at most, as the column's constraint has it.
const EVENT_BYTES: usize = 100;

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
    /// The rest of transactions that were begun before, if there are any, then
    /// everything else: the order in which they are to be delivered.
    pub runs: Vec<Run>,
}

/// Rows of a page in the order of delivery.
#[derive(Debug)]
pub struct Run {
    part: Part,
    /// Those that can be delivered.
    pub notifications: Vec<(UserId, Notification)>,
    /// Those that can't.
    pub unusable: Unusable,
    /// How many were read.
    pub rows: usize,
    /// The last one that was read, whether it can be delivered or not.
    last: Option<RowKey>,
    /// The transactions of which rows were read, and not all.
    cut: Unread,
    /// Whether that was all.
    rest: Rest,
}

/// Which rows a run is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The rest of transactions of which rows have been read before.
    Begun,
    /// Rows of all other transactions.
    Others,
}

/// Rows that were read and can't be delivered, because the constraints of the
/// table that rule them out were dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unusable {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first: Option<(RowKey, Flaw)>,
}

/// Why a row can't be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// No user can be identified by it.
    #[error("user_id is not a text of 1 to {} bytes", UserId::MAX_BYTES)]
    User,
    /// Nothing, or too much.
    #[error("text is null or longer than {TEXT_BYTES} bytes")]
    Text,
    /// It would break the stream's format.
    #[error("event is not one line of 1 to {EVENT_BYTES} bytes")]
    Event,
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

impl Page {
    /// How many rows were read.
    pub fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.rows).sum()
    }

    /// Whether it holds all that is new.
    pub fn rest(&self) -> Rest {
        if self.runs.iter().all(|run| run.rest == Rest::Nothing) {
            Rest::Nothing
        } else {
            Rest::More
        }
    }
}

impl Run {
    /// Moves the position that the page was read from past the run, the runs one
    /// after the other. Returns what the run leaves.
    pub fn pass(&self, position: &mut Position, snapshot: &Snapshot) -> Unread {
        match self.part {
            Part::Begun => position.pass_begun(&self.cut),
            Part::Others => position.pass_others(self.last, &self.cut, self.rest, snapshot),
        }
    }
}

impl Unusable {
    fn add(&mut self, row: RowKey, flaw: Flaw) {
        self.count += 1;
        self.first.get_or_insert((row, flaw));
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

/// Rows in a page of disconnections: 5 ms at most, in which no row is delivered,
/// and 2 MB if all user ids are of the longest.
const DISCONNECTIONS_ROWS: usize = 2_000;

/// Which streams were to end since a position: a page of them.
#[derive(Debug)]
pub struct Disconnections {
    /// In which incarnation of the server it was read.
    pub incarnation: Incarnation,
    /// What the statement could see.
    pub snapshot: Snapshot,
    /// Where the log stood.
    pub log: Log,
    /// What time it was there.
    pub clock: Moment,
    /// The key of the last row that was read, also if no stream can match it.
    pub last: Option<RowKey>,
    /// Which streams.
    pub found: Vec<Disconnection>,
    /// Whether that was all.
    pub rest: Rest,
    /// What the page leaves of the last row's transaction.
    pub unread: Unread,
}

/// The next page of which streams were to end since `position`; without a position
/// none of them, but the last one there is. If everyone was disconnected since, it is
/// that alone, and stands for all up to the last one there is.
///
/// # Errors
///
/// What Postgres answers.
pub async fn disconnections(
    client: &Client,
    query: &Statement,
    position: Option<&Position>,
) -> Result<Disconnections, Error> {
    let floor = position.map(Position::floor);
    let open = position.map(Position::open_xids).unwrap_or_default();
    let reads = position.map(Position::open_reads).unwrap_or_default();
    let limit = DISCONNECTIONS_ROWS as i32 + 1;
    let rows = client
        .query(query, &[&floor, &open, &reads, &limit])
        .await?;
    let head = first_row(&rows);
    let (mut last, mut found) = (None::<RowKey>, Vec::new());
    let (mut rest, mut unread) = (Rest::Nothing, Unread::NOTHING);
    for (index, row) in rows.iter().enumerate() {
        let Some(xid) = row.try_get("xid")? else {
            break;
        };
        if index == DISCONNECTIONS_ROWS {
            rest = Rest::More;
            let cut_off = last.filter(|last| last.xid == xid);
            unread = cut_off.map_or(Unread::NOTHING, Unread::after);
            break;
        }
        last = Some(RowKey {
            xid,
            id: row.try_get("id")?,
        });
        let (user, ticket) = (row.try_get("user_id")?, row.try_get("ticket")?);
        if position.is_some() {
            found.extend(Disconnection::from_columns(user, ticket));
        }
    }
    Ok(Disconnections {
        incarnation: read_incarnation(head)?,
        snapshot: head.try_get("snapshot")?,
        log: read_log(head)?,
        clock: head.try_get("clock")?,
        last,
        found,
        rest,
        unread,
    })
}

fn read_log(row: &Row) -> Result<Log, Error> {
    Ok(Log {
        inserted: row.try_get("inserted")?,
        flushed: row.try_get("flushed")?,
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
pub async fn incarnation(pool: &Pool, sql: &Sql) -> Result<Incarnation, QueryError> {
    let rows = pool.query(READ_LIMIT, &sql.incarnation, &[]);
    Ok(read_incarnation(first_row(&rows.await?))?)
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
    let (begun, not_begun) = (position.begun(), position.not_begun());
    let share = size.shared_by(begun.len());
    let others = match begun.len() {
        0 => size,
        1..MOST_BEGUN => size.beside(),
        _ => PageSize { rows: 0, ..size },
    };
    let rows = client
        .query(
            query,
            &[
                &begun.xids(),
                &begun.reads(),
                &share.limit(),
                &share.bytes,
                &position.floor(),
                &not_begun.xids(),
                &others.limit(),
                &others.bytes,
            ],
        )
        .await?;
    let head = first_row(&rows);
    let mut keys = Vec::with_capacity(rows.len());
    for row in &rows {
        keys.extend(read_key(row)?);
    }
    let begun_rows = keys.partition_point(|key| key.part == Part::Begun);
    let (begun_rows, other_rows) = keys.split_at(begun_rows);
    let mut runs = Vec::with_capacity(2);
    if !begun.is_empty() {
        let mut run = Run::new(Part::Begun);
        for rows in begun_rows.chunk_by(|a, b| a.key.xid == b.key.xid) {
            run.read(rows, within(rows, share.rows));
        }
        runs.push(run);
    }
    let mut run = Run::new(Part::Others);
    let mut count = within(other_rows, others.rows);
    if !begun.is_empty() {
        count = whole_transactions(other_rows, count);
    }
    run.read(other_rows, count);
    runs.push(run);
    Ok(Page {
        rings: read_rings(head)?,
        log: read_log(head)?,
        snapshot: Arc::new(head.try_get("snapshot")?),
        runs,
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
            READ_LIMIT,
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
    Ok(read_user_page(&rows, size)?.0)
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
            READ_LIMIT,
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
    let (page, first) = read_user_page(&rows, size)?;
    let batch = &page.batch;
    // What is still running may leave rows of before the first one.
    let ended = batch.snapshot.ended_below();
    let drained = match first {
        Some(first) => ended.min(first.xid),
        None => ended,
    };
    let passed: Option<Xid> = first_row(&rows).try_get("passed")?;
    let start = match (first, &batch.end) {
        (Some(first), _) => Position::before(first, &batch.snapshot),
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

/// Also the first row that was read, whether it can be delivered or not.
fn read_user_page(rows: &[Row], size: PageSize) -> Result<(UserPage, Option<RowKey>), Error> {
    let head = first_row(rows);
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.extend(read_key(row)?);
    }
    let count = within(&keys, size.rows);
    let (read, rest) = keys.split_at(count);
    let (mut events, mut unusable) = (Vec::with_capacity(count), Unusable::default());
    for read in read {
        match read_notification(read.key, read.row) {
            Ok(notification) => events.push(Event::from(notification)),
            Err(flaw) => unusable.add(read.key, flaw),
        }
    }
    if let Some((row, flaw)) = unusable.first {
        // The listener has warned of them when they were new.
        let (rows, row) = (unusable.count, row.id);
        debug!(rows, row, %flaw, "skipped rows that can't be delivered: {flaw}");
    }
    let last = read.last().map(|last| last.key);
    let cut = match (last, rest.first()) {
        (Some(last), Some(next)) if next.key.xid == last.xid => Unread::after(last),
        _ => Unread::NOTHING,
    };
    let end = match rest {
        [] => End::CaughtUp {
            top: head.try_get("top")?,
        },
        _ => End::MorePages,
    };
    let page = UserPage {
        incarnation: read_incarnation(head)?,
        pruned: head.try_get("pruned")?,
        batch: Batch {
            events,
            snapshot: Arc::new(head.try_get("snapshot")?),
            unread: Arc::new(cut),
            last,
            end,
        },
    };
    Ok((page, read.first().map(|first| first.key)))
}

/// In which incarnation of the server a statement ran, from its columns
/// `timeline` and `since`. After a crash, until the first bridge has begun the next
/// incarnation, it is one that no other equals.
///
/// # Errors
///
/// If there are none.
pub fn read_incarnation(head: &Row) -> Result<Incarnation, Error> {
    Ok(Incarnation {
        timeline: head.try_get("timeline")?,
        since: head
            .try_get::<_, Option<_>>("since")?
            .unwrap_or(Since::NONE),
    })
}

/// A row that a page's statement has returned, and what is known of it before the
/// rest of it is read.
struct Returned<'a> {
    key: RowKey,
    part: Part,
    /// It lies beyond the page's bytes.
    is_beyond: bool,
    row: &'a Row,
}

/// None for the row that only tells that nothing is new.
fn read_key(row: &Row) -> Result<Option<Returned<'_>>, Error> {
    let Some(xid) = row.try_get("xid")? else {
        return Ok(None);
    };
    let begun: Option<Xid> = row.try_get("begun")?;
    Ok(Some(Returned {
        key: RowKey {
            xid,
            id: row.try_get("id")?,
        },
        part: if begun.is_some() {
            Part::Begun
        } else {
            Part::Others
        },
        is_beyond: row.try_get("beyond")?,
        row,
    }))
}

/// How many of the rows are within the page, by count and by bytes. Those beyond
/// tell that there is more.
fn within(rows: &[Returned<'_>], most: usize) -> usize {
    let rows = rows.iter().take(most);
    rows.take_while(|row| !row.is_beyond).count()
}

/// How many of the first `count` rows to take so that no transaction is cut, unless
/// it is the first one.
fn whole_transactions(rows: &[Returned<'_>], count: usize) -> usize {
    let (Some(first), Some(next)) = (rows.first(), rows.get(count)) else {
        return count;
    };
    let next = next.key.xid;
    if next == first.key.xid {
        return count;
    }
    rows[..count].partition_point(|row| row.key.xid < next)
}

impl Run {
    fn new(part: Part) -> Self {
        Self {
            part,
            notifications: Vec::new(),
            unusable: Unusable::default(),
            rows: 0,
            last: None,
            cut: Unread::default(),
            rest: Rest::Nothing,
        }
    }

    /// Reads the first `count` of these rows, which are in the order of delivery.
    ///
    /// A row that can't be delivered counts as read: it must not stop those after
    /// it.
    fn read(&mut self, rows: &[Returned<'_>], count: usize) {
        let (read, rest) = rows.split_at(count);
        for Returned { key, row, .. } in read {
            match read_user(row).and_then(|user| Ok((user, read_notification(*key, row)?))) {
                Ok(notification) => self.notifications.push(notification),
                Err(flaw) => self.unusable.add(*key, flaw),
            }
        }
        self.rows += count;
        self.last = read.last().map(|last| last.key).or(self.last);
        let Some(next) = rest.first() else {
            return;
        };
        self.rest = Rest::More;
        if let Some(last) = read.last()
            && last.key.xid == next.key.xid
        {
            self.cut.add(last.key);
        }
    }
}

fn read_user(row: &Row) -> Result<UserId, Flaw> {
    let user: Option<&str> = row.try_get("user_id").map_err(|_| Flaw::User)?;
    user.and_then(UserId::parse).ok_or(Flaw::User)
}

fn read_notification(key: RowKey, row: &Row) -> Result<Notification, Flaw> {
    let text: Option<String> = row.try_get("text").map_err(|_| Flaw::Text)?;
    let event: Option<String> = row.try_get("event").map_err(|_| Flaw::Event)?;
    if event.as_deref().is_some_and(|name| !is_one_line(name)) {
        return Err(Flaw::Event);
    }
    Ok(Notification {
        key,
        event,
        text: text.ok_or(Flaw::Text)?,
        // A time that has no such form is none.
        created_at: row.try_get("created_at").unwrap_or_default(),
        expires: Expiry::from_seconds_left(row.try_get("seconds_left").unwrap_or_default()),
    })
}

fn is_one_line(event: &str) -> bool {
    (1..=EVENT_BYTES).contains(&event.len()) && !event.contains(['\r', '\n'])
}
