//! The first page of a user who connects without a position.

use tokio_postgres::{Error, Row, types::Type};

use super::{
    size::PageSize,
    user::{UserPage, read_user_page},
};
use crate::{
    delivery::batch::End,
    domain::{history::Incarnation, notification::UserId, position::Position, snapshot::Xid},
    postgres::pool::{Pool, QueryError, READ_LIMIT, first_row},
};

/// The maximum of `replay=N`.
pub const REPLAY_ROWS: u32 = 500;

/// How many rows may be read without being delivered each time a user connects without a
/// position: some 0.2 ms, as much as moving the user's watermark past them costs.
pub const SKIPPED_ROWS_BEFORE_NOTING: u32 = 100;

/// Which first page to read.
#[derive(Clone, Copy, Debug)]
pub struct Backlog<'a> {
    pub query: &'a str,
    pub user: Option<&'a UserId>,
    /// The page contains everything that is new to this position, sent or not.
    pub opened: &'a Position,
    /// The cluster that transaction ids belong to.
    pub system_identifier: i64,
    /// How many rows may be read without being delivered; see [`SKIPPED_ROWS_BEFORE_NOTING`].
    pub skipped_rows: u32,
}

/// The first page of a user who connects without a position.
#[derive(Debug)]
pub struct BacklogPage {
    /// The position from which it was read.
    pub start: Position,
    pub page: UserPage,
    /// Whether the user may have topics: then the page doesn't have all rows.
    pub has_topics: bool,
    /// Up to where rows of topics were delivered, if that is known.
    pub cursor: Option<Position>,
    /// No row of the user before this transaction is unsent or new.
    pub own: Xid,
    /// The user's new watermark: nothing is left to deliver before this transaction.
    /// `None` unless too many rows were read without being delivered.
    pub drained: Option<Xid>,
}

/// A cursor of another incarnation falls to what was on disk then.
fn read_cursor(head: &Row, here: Incarnation) -> Result<Option<Position>, Error> {
    let Some(floor) = head.try_get("c_floor")? else {
        return Ok(None);
    };
    let mut cursor = Position::stored(floor, head.try_get("c_open")?);
    let of = Incarnation {
        timeline: head.try_get("c_timeline")?,
        since: head.try_get("c_since")?,
    };
    if of != here {
        cursor.fall_to(head.try_get("c_durable")?);
    }
    Ok(Some(cursor))
}

/// Reads the first page of a user who connects without a position: the unsent rows,
/// and everything that is new since the connection was opened.
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
                (&wanted.user.map(UserId::as_str), Type::TEXT),
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
    let head = first_row(&rows);
    let of = page.incarnation;
    let oldest = [
        first.map(|first| first.xid),
        opened.open_xids().first().copied(),
    ];
    Ok(BacklogPage {
        start,
        has_topics: head.try_get("has_topics")?,
        cursor: read_cursor(head, of)?,
        own: oldest.into_iter().flatten().fold(opened.floor(), Xid::min),
        page,
        drained: passed
            .is_some_and(|passed| passed < drained)
            .then_some(drained),
    })
}
