//! A page of the table's tail: the rows of all users.

use std::sync::Arc;

use tokio_postgres::{Client, Error, Statement};

use super::{
    bell::{BellGeneration, read_rings},
    head::read_log,
    rows::{Part, Returned, UnusableRows, read_addressed, read_key, within},
    size::{MOST_BEGUN, PageSize},
};
use crate::{
    domain::{
        durable_floor::Log,
        notification::{Addressee, Notification},
        position::{Position, Rest, RowKey, Unread},
        snapshot::{Snapshot, Xid},
    },
    postgres::{pool::first_row, queries::Sql},
};

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
    /// Whether memberships have changed. Then the rows must be read again, in one snapshot
    /// with the changes.
    pub has_changes: bool,
    /// The next rows of transactions that were begun before, if there are any, then all
    /// others. They are to be delivered in this order.
    pub runs: Vec<Run>,
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

/// Rows of a page in the order of delivery.
#[derive(Debug)]
pub struct Run {
    part: Part,
    /// Rows that can be delivered.
    pub notifications: Vec<(Addressee, Notification)>,
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

    /// Moves the position from which the page was read past the run. Call it for the runs
    /// in order. Returns what the run left unread.
    pub fn pass(&self, position: &mut Position, snapshot: &Snapshot) -> Unread {
        match self.part {
            Part::Begun => position.pass_begun(&self.cut),
            Part::Others => position.pass_others(self.last, &self.cut, self.rest, snapshot),
        }
    }

    /// Reads the first `count` of these rows, which are in the order of delivery.
    ///
    /// A row that can't be delivered counts as read, so that it doesn't block the rows
    /// after it.
    fn read(&mut self, rows: &[Returned<'_>], count: usize) {
        let (read, rest) = rows.split_at(count);
        for Returned { key, row, .. } in read {
            match read_addressed(*key, row) {
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

/// Where a reader starts now.
#[derive(Debug)]
pub struct TailStart {
    pub position: Position,
    pub snapshot: Snapshot,
    /// The next transaction id as of the last checkpoint.
    pub checkpointed: Xid,
    /// Whether anyone has used topics.
    pub has_topics: bool,
}

pub async fn tail_start(client: &Client, query: &str) -> Result<TailStart, Error> {
    let row = client.query_one(query, &[]).await?;
    let snapshot: Snapshot = row.try_get("snapshot")?;
    Ok(TailStart {
        position: Position::after(row.try_get("top")?, &snapshot),
        snapshot,
        checkpointed: row.try_get("checkpointed")?,
        has_topics: row.try_get("has_topics")?,
    })
}

/// The statements that read a page of the tail.
#[derive(Debug)]
pub struct TailStatements {
    any: Statement,
    past_floor: Statement,
}

impl TailStatements {
    pub async fn prepare(client: &Client, sql: &Sql) -> Result<Self, Error> {
        Ok(Self {
            any: client.prepare(&sql.tail_page).await?,
            past_floor: client.prepare(&sql.tail_page_past_floor).await?,
        })
    }
}

/// Reads the first new rows of all users. `known` is the snapshot whose memberships are
/// known.
pub async fn tail_page(
    client: &Client,
    statements: &TailStatements,
    position: &Position,
    known: &Snapshot,
    size: PageSize,
) -> Result<TailPage, Error> {
    let (begun, not_begun) = (position.begun(), position.not_begun());
    let share = size.shared_by(begun.len());
    let others = match begun.len() {
        0 => size,
        1..MOST_BEGUN => size.beside(),
        _ => PageSize { rows: 0, ..size },
    };
    let (xmax, running) = (known.xmax(), known.running_xids());
    let floor = position.floor();
    let rows = if begun.is_empty() && not_begun.is_empty() {
        let (rows, bytes) = (size.limit(), size.bytes);
        let query = &statements.past_floor;
        client
            .query(query, &[&xmax, &running, &floor, &rows, &bytes])
            .await?
    } else {
        client
            .query(
                &statements.any,
                &[
                    &xmax,
                    &running,
                    &begun.xids(),
                    &begun.reads(),
                    &share.limit(),
                    &share.bytes,
                    &floor,
                    &not_begun.xids(),
                    &others.limit(),
                    &others.bytes,
                ],
            )
            .await?
    };
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
        has_changes: head.try_get("changed")?,
        runs,
    })
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
