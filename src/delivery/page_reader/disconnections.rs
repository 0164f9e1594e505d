//! A page of the disconnections that applications have requested.

use tokio_postgres::{Client, Error, Statement};

use super::head::{read_incarnation, read_log};
use crate::{
    domain::{
        clock::Moment,
        durable_floor::Log,
        history::Incarnation,
        identity::Disconnection,
        position::{Position, Rest, RowKey, Unread},
        snapshot::Snapshot,
    },
    postgres::pool::first_row,
};

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
