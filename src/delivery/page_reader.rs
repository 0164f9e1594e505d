//! Reads pages of the table. A page is one statement, so that its rows and its snapshot
//! belong together.

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

#[derive(Clone, Copy, Debug)]
pub struct PageSize {
    pub rows: usize,
    /// Bytes of text after which no further row is added. The row that exceeds the limit
    /// is still included, so a page has at most this plus one text (1 MiB).
    pub bytes: i64,
}

impl PageSize {
    /// A page of the table's tail: large enough that a row costs little, small enough to
    /// take only milliseconds.
    pub const TAIL: Self = Self {
        rows: 1_000,
        bytes: 1 << 20,
    };

    /// A page of one user's catch-up. Every connection may hold one at the same time.
    pub const USER: Self = Self {
        rows: 500,
        bytes: 256 << 10,
    };

    /// Half the size, for a network that is too slow; at least one row.
    pub fn halved(self) -> Self {
        Self {
            rows: (self.rows / 2).max(1),
            bytes: (self.bytes / 2).max(1),
        }
    }

    /// The maximum memory that a page of this size takes, in bytes.
    pub fn most_bytes(self) -> usize {
        let texts = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        texts + TEXT_BYTES + self.rows * Event::MEMORY
    }

    /// The share of each of the transactions that are read in pieces.
    fn shared_by(self, transactions: usize) -> Self {
        let transactions = transactions.max(1);
        Self {
            rows: (self.rows / transactions).max(1),
            bytes: (self.bytes / transactions as i64).max(1),
        }
    }

    /// The share of all other transactions meanwhile. It is added to the page, so that
    /// the large transactions don't take longer.
    fn beside(self) -> Self {
        Self {
            rows: (self.rows / BESIDE).max(1),
            bytes: (self.bytes / BESIDE as i64).max(1),
        }
    }

    /// Asks for one row more, which shows whether rows remain.
    fn limit(self) -> i64 {
        self.rows as i64 + 1
    }
}

/// While transactions are read in pieces, a page also holds other rows, up to the size of
/// a page divided by this: 250 rows, so that with pages that take some 20 ms, more than
/// ten thousand rows per second overtake a large transaction. A transaction that fits
/// into those 250 rows is neither split nor overtaken by a later one.
const BESIDE: usize = 4;

/// How many transactions are read in pieces at once. Each may add a text to a page: 16
/// MiB at most. While there are this many, one has to be read to its end before another
/// begins. An event's id can name four times as many.
pub const MOST_BEGUN: usize = 16;

/// The maximum length of a text in bytes, as in the column's constraint. The queries
/// leave out larger texts.
const TEXT_BYTES: usize = 1 << 20;

/// The maximum length of an event's name in bytes, as in the column's constraint.
const EVENT_BYTES: usize = 100;

/// The maximum of `replay=N`.
pub const REPLAY_ROWS: u32 = 500;

/// The first rows that are new since a position.
#[derive(Debug)]
pub struct TailPage {
    /// The period in which writers send NOTIFY, read after the snapshot was taken. `None` if
    /// they don't.
    pub rings: Option<BellGeneration>,
    /// The WAL positions when the page was read.
    pub log: Log,
    /// The snapshot of the statement.
    pub snapshot: Arc<Snapshot>,
    /// The next rows of transactions that were begun before, if there are any, then all
    /// others. They are to be delivered in this order.
    pub runs: Vec<Run>,
}

/// Rows of a page in the order of delivery.
#[derive(Debug)]
pub struct Run {
    part: Part,
    /// Rows that can be delivered.
    pub notifications: Vec<(UserId, Notification)>,
    /// Rows that can't.
    pub unusable: UnusableRows,
    /// The number of rows that were read.
    pub rows: usize,
    /// The last row that was read, whether it can be delivered or not.
    last: Option<RowKey>,
    /// The transactions that were read in part.
    cut: Unread,
    /// Whether rows remain.
    rest: Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The next rows of transactions that were read in part before.
    Begun,
    /// Rows of all other transactions.
    Others,
}

/// Rows that were read and can't be delivered. They exist only if the constraints of the
/// table that exclude them were dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnusableRows {
    pub count: u64,
    pub first: Option<(RowKey, Flaw)>,
}

/// Why a row can't be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It names no valid user.
    #[error("user_id is not 1 to {} bytes long", UserId::MAX_BYTES)]
    User,
    /// It is null or too long.
    #[error("text is null or longer than {TEXT_BYTES} bytes")]
    Text,
    /// It would break the stream's format.
    #[error("event is not one line of 1 to {EVENT_BYTES} bytes")]
    Event,
}

/// A period in which writers send NOTIFY: a value of the sequence `tidings_bell`. No
/// value occurs twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BellGeneration(i64);

/// Whether writers can be relied on to send NOTIFY.
#[derive(Clone, Copy, Debug)]
pub struct BellState {
    /// The period in which they do. `None` if another session was changing it at the same
    /// time.
    pub rings: Option<BellGeneration>,
    /// Whether a writer that may not have sent NOTIFY is still running.
    pub writing: bool,
}

impl TailPage {
    pub fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.rows).sum()
    }

    /// Whether more rows remain.
    pub fn rest(&self) -> Rest {
        if self.runs.iter().all(|run| run.rest == Rest::Nothing) {
            Rest::Nothing
        } else {
            Rest::More
        }
    }
}

impl Run {
    /// Moves the position from which the page was read past the run. Call it for the runs
    /// in order. Returns what the run left unread.
    pub fn pass(&self, position: &mut Position, snapshot: &Snapshot) -> Unread {
        match self.part {
            Part::Begun => position.pass_begun(&self.cut),
            Part::Others => position.pass_others(self.last, &self.cut, self.rest, snapshot),
        }
    }
}

impl UnusableRows {
    fn add(&mut self, row: RowKey, flaw: Flaw) {
        self.count += 1;
        self.first.get_or_insert((row, flaw));
    }
}

#[derive(Debug)]
pub struct UserPage {
    /// The incarnation of the server in which it was read.
    pub incarnation: Incarnation,
    /// The youngest transaction of which rows were deleted.
    pub pruned: Option<Xid>,
    pub batch: Batch,
}

/// Rows in a page of disconnections. Reading it takes at most 5 ms, during which no row
/// is delivered, and 2 MB if all user ids have the maximum length.
const DISCONNECTIONS_ROWS: usize = 2_000;

/// A page of disconnections.
#[derive(Debug)]
pub struct Disconnections {
    /// The incarnation of the server in which it was read.
    pub incarnation: Incarnation,
    /// The snapshot of the statement.
    pub snapshot: Snapshot,
    /// The WAL positions at that time.
    pub log: Log,
    /// The server's time.
    pub clock: Moment,
    /// The key of the last row that was read, even if it can match no stream.
    pub last: Option<RowKey>,
    pub found: Vec<Disconnection>,
    /// Whether more rows remain.
    pub rest: Rest,
    /// What the page left unread of the last row's transaction.
    pub unread: Unread,
}

/// Reads the next page of disconnections after `position`. Without a position, it
/// contains no disconnections, but the key of the last one there is. If everyone was
/// disconnected since, the page consists of that disconnection alone and covers all
/// others up to the last one there is.
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

/// The position of a reader that starts now, and the next transaction id as of the last
/// checkpoint.
pub async fn tail_start(client: &Client, query: &str) -> Result<(Position, Xid), Error> {
    let row = client.query_one(query, &[]).await?;
    let snapshot: Snapshot = row.try_get("snapshot")?;
    let position = Position::after(row.try_get("top")?, &snapshot);
    Ok((position, row.try_get("checkpointed")?))
}

/// The incarnation of the server in which the pool's queries run. Fails on a standby.
pub async fn incarnation(pool: &Pool, sql: &Sql) -> Result<Incarnation, QueryError> {
    let rows = pool.query(READ_LIMIT, &sql.incarnation, &[]);
    Ok(read_incarnation(first_row(&rows.await?))?)
}

/// Reads the first new rows of all users.
pub async fn tail_page(
    client: &Client,
    query: &Statement,
    position: &Position,
    size: PageSize,
) -> Result<TailPage, Error> {
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
    Ok(TailPage {
        rings: read_rings(head)?,
        log: read_log(head)?,
        snapshot: Arc::new(head.try_get("snapshot")?),
        runs,
    })
}

fn read_rings(row: &Row) -> Result<Option<BellGeneration>, Error> {
    let since: Option<i64> = row.try_get("rings_since")?;
    Ok(since.map(BellGeneration))
}

/// Makes writers send NOTIFY for rows of this table.
pub async fn fall_asleep(
    client: &Client,
    query: &Statement,
    table: u32,
) -> Result<BellState, Error> {
    let row = client.query_one(query, &[&table]).await?;
    Ok(BellState {
        rings: read_rings(&row)?,
        writing: row.try_get("writing")?,
    })
}

/// Reads the first new rows of one user.
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

/// How many rows may be read in vain each time a user connects without a position: some
/// 0.2 ms, as much as moving the user's watermark past them costs.
pub const SKIPPED_ROWS_BEFORE_NOTING: u32 = 100;

/// Which first page to read.
#[derive(Clone, Copy, Debug)]
pub struct Backlog<'a> {
    pub query: &'a str,
    pub user: &'a UserId,
    /// How many of the user's last rows the page begins with, sent or not.
    pub replay: u32,
    /// The page contains everything that is new to this position, sent or not.
    pub opened: &'a Position,
    /// The cluster that transaction ids belong to.
    pub system_identifier: i64,
    /// How many rows may be read in vain; see [`SKIPPED_ROWS_BEFORE_NOTING`].
    pub skipped_rows: u32,
}

/// The first page of a user who connects without a position.
#[derive(Debug)]
pub struct BacklogPage {
    /// The position from which it was read.
    pub start: Position,
    pub page: UserPage,
    /// The user's new watermark: nothing is left to deliver before this transaction.
    /// `None` unless too many rows were read in vain.
    pub drained: Option<Xid>,
}

/// Reads the first page of a user who connects without a position: the unsent rows, the
/// last rows that the client asked for, and everything that is new since the connection
/// was opened.
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
                (&i64::from(wanted.skipped_rows), Type::INT8),
            ],
        )
        .await?;
    let (page, first) = read_user_page(&rows, size)?;
    let batch = &page.batch;
    // Transactions that are still running may commit rows that precede the first one.
    let ended = batch.snapshot.xmin();
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

/// Also returns the first row that was read, whether it can be delivered or not.
fn read_user_page(rows: &[Row], size: PageSize) -> Result<(UserPage, Option<RowKey>), Error> {
    let head = first_row(rows);
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.extend(read_key(row)?);
    }
    let count = within(&keys, size.rows);
    let (read, rest) = keys.split_at(count);
    let (mut events, mut unusable) = (Vec::with_capacity(count), UnusableRows::default());
    for read in read {
        match read_notification(read.key, read.row) {
            Ok(notification) => events.push(Event::from(notification)),
            Err(flaw) => unusable.add(read.key, flaw),
        }
    }
    if let Some((row, flaw)) = unusable.first {
        // The listener warned of them when they were new.
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

/// The incarnation of the server in which a statement ran, from its columns `timeline`
/// and `since`. After a crash, until a bridge begins the next incarnation, it is one that
/// equals no other.
pub fn read_incarnation(head: &Row) -> Result<Incarnation, Error> {
    Ok(Incarnation {
        timeline: head.try_get("timeline")?,
        since: head
            .try_get::<_, Option<_>>("since")?
            .unwrap_or(Since::NONE),
    })
}

/// A row returned by a page's statement, of which only the key has been decoded.
struct Returned<'a> {
    key: RowKey,
    part: Part,
    /// Whether it exceeds the page's limit in bytes.
    is_beyond: bool,
    row: &'a Row,
}

/// Returns `None` for the row that is returned if nothing is new.
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

/// How many of the rows are within the page's limits in rows and bytes. The others only
/// show that more rows remain.
fn within(rows: &[Returned<'_>], most: usize) -> usize {
    let rows = rows.iter().take(most);
    rows.take_while(|row| !row.is_beyond).count()
}

/// How many of the first `count` rows to take so that no transaction is split, except the
/// first one.
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
            unusable: UnusableRows::default(),
            rows: 0,
            last: None,
            cut: Unread::default(),
            rest: Rest::Nothing,
        }
    }

    /// Reads the first `count` of these rows, which are in the order of delivery.
    ///
    /// A row that can't be delivered counts as read, so that it doesn't block the rows
    /// after it.
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
        // Decoding fails if it is infinite.
        created_at: row.try_get("created_at").unwrap_or_default(),
        expires: Expiry::from_seconds_left(row.try_get("seconds_left").unwrap_or_default()),
    })
}

fn is_one_line(event: &str) -> bool {
    (1..=EVENT_BYTES).contains(&event.len()) && !event.contains(['\r', '\n'])
}
