//! A page of one user's rows and of those of the user's topics.

use std::sync::Arc;

use tokio_postgres::{Error, Row, types::Type};

use super::{
    size::PageSize,
    user::{UserPage, read_user_page},
};
use crate::{
    delivery::{batch::End, membership_table::MembershipTable, memberships::LateWanted},
    domain::{
        membership::Membership,
        notification::UserId,
        position::{Position, Rest, RowKey},
        snapshot::{Snapshot, Xid},
        topic::{Topic, TopicChoice},
    },
    postgres::pool::{Pool, QueryError, READ_LIMIT, first_row},
};

/// How many topics a stream may have. A page takes 5 ms with as many, if little is new.
pub const MOST_TOPICS: usize = 1_000;

/// Which page to read.
#[derive(Clone, Copy, Debug)]
pub struct TopicPage<'a> {
    pub query: &'a str,
    /// Whose rows and memberships it has, if it has any but those of granted topics.
    pub user: Option<&'a UserId>,
    pub position: &'a Position,
    pub late: &'a LateWanted,
    pub topics: &'a TopicChoice,
    /// For a connection that was opened without an id, what the bridge had seen then. Rows of
    /// granted topics begin there.
    pub granted_since: Option<&'a Snapshot>,
    pub first: Option<&'a FirstReading>,
}

/// The first reading of a connection that was opened without an id: until it is live, its
/// pages have fewer rows than are new to its position.
#[derive(Clone, Debug)]
pub struct FirstReading {
    /// Of the user's own rows, only those that are unsent or new to this count.
    pub opened: Arc<Position>,
    /// No earlier row of the user counts.
    pub own: Xid,
    /// Whether it is known where the user continues in everyone's topic. Otherwise its rows
    /// begin where the bridge was.
    pub cursor: Cursor,
    /// Rows from this key on are replayed, sent or not.
    pub replayed: Option<RowKey>,
}

/// Whether it is known where a user without an id continues in the topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    Stored,
    Unknown,
}

/// What a page says about the topics of its user.
#[derive(Debug, Default)]
pub struct PageTopics {
    /// The user's memberships in the snapshot of the page, without granted topics and
    /// everyone's: at most [`MOST_TOPICS`], and only those that the client asked for if it
    /// asked for any.
    pub memberships: MembershipTable,
    /// Whether there were more.
    pub is_truncated: bool,
}

/// Reads the late rows of a user, or else the first new rows.
///
/// Late rows fill pages of their own, which end with [`End::Late`]. A page that continues
/// late rows may find none left, and then has new rows that must not be written: they may
/// belong to memberships whose late rows were not looked for.
pub async fn topic_page(
    pool: &Pool,
    wanted: TopicPage<'_>,
    size: PageSize,
) -> Result<UserPage, QueryError> {
    let TopicPage {
        query,
        user,
        position,
        late,
        topics,
        granted_since,
        first,
    } = wanted;
    let begun = late.begun.as_ref();
    let first_late = begun.map(|begun| &*begun.first);
    let (after_xid, after_id) = (
        begun.map(|begun| begun.after.xid),
        begun.map(|begun| begun.after.id),
    );
    let asked = topics.asked.as_deref().map(names);
    // One more shows whether there are more.
    let most = MOST_TOPICS as i64 + 1;
    let opened = first.map(|first| &first.opened);
    let is_unknown = first.is_some_and(|first| first.cursor == Cursor::Unknown);
    let replayed = first.and_then(|first| first.replayed);
    let rows = pool
        .query(
            READ_LIMIT,
            query,
            &[
                (&position.floor(), Type::XID8),
                (&position.open_xids(), Type::XID8_ARRAY),
                (&position.open_reads(), Type::INT8_ARRAY),
                (&size.limit(), Type::INT8),
                (&size.bytes, Type::INT8),
                (&user.map(UserId::as_str), Type::TEXT),
                (&late.handled.xmax(), Type::XID8),
                (&late.handled.running_xids(), Type::XID8_ARRAY),
                (&first_late, Type::PG_SNAPSHOT),
                (&after_xid, Type::XID8),
                (&after_id, Type::INT8),
                (&most, Type::INT8),
                (&asked, Type::TEXT_ARRAY),
                (&names(&topics.granted), Type::TEXT_ARRAY),
                (&granted_since, Type::PG_SNAPSHOT),
                (&opened.map(|opened| opened.floor()), Type::XID8),
                (&opened.map(|opened| opened.open_xids()), Type::XID8_ARRAY),
                (&opened.map(|opened| opened.open_reads()), Type::INT8_ARRAY),
                (&first.map(|first| first.own), Type::XID8),
                (&granted_since.filter(|_| is_unknown), Type::PG_SNAPSHOT),
                (&replayed.map(|row| row.xid), Type::XID8),
                (&replayed.map(|row| row.id), Type::INT8),
            ],
        )
        .await?;
    let (mut page, _) = read_user_page(&rows, size)?;
    let head = first_row(&rows);
    let is_late: Option<bool> = head.try_get("late")?;
    if is_late == Some(true) {
        let rest = match page.batch.end {
            End::MorePages => Rest::More,
            _ => Rest::Nothing,
        };
        page.batch.end = End::Late(rest);
    }
    page.topics = read_topics(head)?;
    Ok(page)
}

/// The oldest of the last `count` rows of a user and of the user's topics. `None` if there
/// are no rows.
pub async fn replay_start(
    pool: &Pool,
    query: &str,
    user: Option<&UserId>,
    count: u32,
    topics: &TopicChoice,
) -> Result<Option<RowKey>, QueryError> {
    let asked = topics.asked.as_deref().map(names);
    let rows = pool
        .query(
            READ_LIMIT,
            query,
            &[
                (&user.map(UserId::as_str), Type::TEXT),
                (&i64::from(count), Type::INT8),
                (&(MOST_TOPICS as i64), Type::INT8),
                (&asked, Type::TEXT_ARRAY),
                (&names(&topics.granted), Type::TEXT_ARRAY),
            ],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    Ok(Some(RowKey {
        xid: row.try_get("xid")?,
        id: row.try_get("id")?,
    }))
}

fn names(topics: &[Topic]) -> Vec<&str> {
    topics.iter().map(Topic::as_str).collect()
}

/// A name that is no topic is left out: no row can have it.
fn read_topics(head: &Row) -> Result<PageTopics, Error> {
    let names: Vec<&str> = head.try_get("topics")?;
    let sinces: Vec<Option<Snapshot>> = head.try_get("sinces")?;
    let xids: Vec<Option<Xid>> = head.try_get("xids")?;
    let is_truncated = names.len() > MOST_TOPICS;
    let memberships = names.iter().zip(sinces).zip(xids).take(MOST_TOPICS);
    let memberships = memberships.filter_map(|((name, since), xid)| {
        let since = since.map(Into::into);
        Some((Topic::parse(name)?, Membership { xid, since }))
    });
    Ok(PageTopics {
        memberships: memberships.collect(),
        is_truncated,
    })
}
