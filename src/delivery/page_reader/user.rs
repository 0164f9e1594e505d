//! A page of one user's rows.

use std::sync::Arc;

use tokio_postgres::{Error, Row, types::Type};
use tracing::debug;

use super::{
    head::read_incarnation,
    rows::{UnusableRows, read_key, read_notification, within},
    size::PageSize,
    topics::PageTopics,
};
use crate::{
    delivery::batch::{Batch, End, Event},
    domain::{
        history::Incarnation,
        log_point::LogPoint,
        notification::UserId,
        position::{Position, RowKey, Unread},
        snapshot::{Snapshot, Xid},
    },
    postgres::{
        pool::{Parameter, Pool, QueryError, READ_LIMIT, first_row},
        queries::Sql,
        replica::{Replica, Unfit},
    },
};

#[derive(Debug)]
pub struct UserPage {
    /// The incarnation of the server in which it was read.
    pub incarnation: Incarnation,
    /// The youngest transaction of which rows were deleted.
    pub pruned: Option<Xid>,
    pub batch: Batch,
    pub topics: PageTopics,
}

/// A page of a user's own rows.
#[derive(Debug)]
pub struct OwnPage {
    pub page: UserPage,
    /// Whether the user may have topics: then the page doesn't have all rows.
    pub has_topics: bool,
}

/// Reads the first new rows of one user, without those of topics. Without a user there
/// are none.
pub async fn user_page(
    pool: &Pool,
    sql: &Sql,
    user: Option<&UserId>,
    position: &Position,
    size: PageSize,
) -> Result<OwnPage, QueryError> {
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
                (&user.map(UserId::as_str), Type::TEXT),
            ],
        )
        .await?;
    Ok(OwnPage {
        page: read_user_page(&rows, size)?.0,
        has_topics: first_row(&rows).try_get("has_topics")?,
    })
}

/// The same from a replica, as of this point.
///
/// # Errors
///
/// [`Unfit`], if the replica doesn't have this page.
pub async fn user_page_on_replica(
    replica: &Replica,
    sql: &Sql,
    point: &LogPoint,
    user: &UserId,
    position: &Position,
    size: PageSize,
) -> Result<OwnPage, Unfit> {
    let snapshot = &point.snapshot;
    let parameters: [Parameter<'_>; 8] = [
        (&position.floor(), Type::XID8),
        (&position.open_xids(), Type::XID8_ARRAY),
        (&position.open_reads(), Type::INT8_ARRAY),
        (&size.limit(), Type::INT8),
        (&size.bytes, Type::INT8),
        (&user.as_str(), Type::TEXT),
        (&snapshot.xmax(), Type::XID8),
        (&snapshot.running_xids(), Type::XID8_ARRAY),
    ];
    let rows = replica.query(point, &sql.user_page_on_replica, &parameters);
    let rows = rows.await?;
    let read = || {
        let (incarnation, snapshot) = (point.history.incarnation, Arc::clone(snapshot));
        Ok(OwnPage {
            page: read_rows(&rows, size, incarnation, snapshot)?.0,
            has_topics: first_row(&rows).try_get("has_topics")?,
        })
    };
    read().map_err(|error: Error| Unfit::Query(error.into()))
}

/// Also returns the first row that was read, whether it can be delivered or not.
pub(super) fn read_user_page(
    rows: &[Row],
    size: PageSize,
) -> Result<(UserPage, Option<RowKey>), Error> {
    let head = first_row(rows);
    let snapshot = Arc::new(head.try_get("snapshot")?);
    read_rows(rows, size, read_incarnation(head)?, snapshot)
}

fn read_rows(
    rows: &[Row],
    size: PageSize,
    incarnation: Incarnation,
    snapshot: Arc<Snapshot>,
) -> Result<(UserPage, Option<RowKey>), Error> {
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
            Ok(notification) => events.push(Arc::new(Event::from(notification))),
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
        incarnation,
        pruned: head.try_get("pruned")?,
        batch: Batch {
            events,
            snapshot,
            unread: Arc::new(cut),
            last,
            end,
        },
        topics: PageTopics::default(),
    };
    Ok((page, read.first().map(|first| first.key)))
}
