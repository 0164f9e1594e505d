//! The first page of a connection without an id, with the rows of the user's topics.

use std::sync::Arc;

use super::{
    backlog::{Backlog, BacklogPage, SKIPPED_ROWS_BEFORE_NOTING, backlog_page},
    size::PageSize,
    topics::{Cursor, FirstReading, TopicPage, replay_start, topic_page},
    user::UserPage,
};
use crate::{
    delivery::memberships::LateWanted,
    domain::{
        notification::UserId,
        position::Position,
        snapshot::{Snapshot, Xid},
        topic::TopicChoice,
    },
    postgres::{
        pool::{Pool, QueryError},
        queries::Sql,
    },
};

/// Which first page to read.
#[derive(Clone, Copy, Debug)]
pub struct FirstWanted<'a> {
    /// The query that the role may execute.
    pub backlog: &'a str,
    pub user: Option<&'a UserId>,
    /// How many of the user's last rows the page begins with, sent or not.
    pub replay: u32,
    /// The page contains everything that is new to this position, sent or not.
    pub opened: &'a Arc<Position>,
    /// The cluster that transaction ids belong to.
    pub system_identifier: i64,
    pub topics: &'a TopicChoice,
    /// What `opened` had seen. Rows of granted topics begin there.
    pub granted_since: Option<&'a Snapshot>,
}

#[derive(Debug)]
pub struct FirstPage {
    pub start: FirstStart,
    pub page: UserPage,
    /// The user's new watermark: see [`BacklogPage::drained`].
    pub drained: Option<Xid>,
}

/// Where a connection without an id starts.
#[derive(Debug)]
pub struct FirstStart {
    pub position: Position,
    pub reading: FirstReading,
}

/// Reads the first page of a connection without an id. `waiting` is asked for a cursor that
/// is newer than the stored one.
///
/// # Errors
///
/// [`QueryError`].
pub async fn first_page(
    pool: &Pool,
    sql: &Sql,
    wanted: FirstWanted<'_>,
    waiting: impl FnOnce() -> Option<Position>,
    size: PageSize,
) -> Result<FirstPage, QueryError> {
    // Before the stored one is read: once that is written, it doesn't wait any more.
    let waiting = waiting();
    let BacklogPage {
        start,
        page,
        has_topics,
        cursor,
        own,
        drained,
    } = backlog(pool, wanted, size).await?;
    // The query knows only the stored cursor.
    let has_topics = has_topics || waiting.is_some();
    let cursor = waiting.or(cursor);
    let mut reading = FirstReading {
        opened: Arc::clone(wanted.opened),
        own,
        cursor: match cursor {
            Some(_) => Cursor::Stored,
            None => Cursor::Unknown,
        },
        replayed: None,
    };
    if !has_topics && wanted.topics.granted.is_empty() && wanted.replay == 0 {
        let position = start;
        return Ok(FirstPage {
            start: FirstStart { position, reading },
            page,
            drained,
        });
    }
    // The rows of topics begin at the cursor, and the user's own at the first unsent one.
    // Whatever is new to either is read, and both conditions are tested.
    let mut position = start;
    if wanted.replay > 0 {
        let (query, user, count) = (&sql.replay_start, wanted.user, wanted.replay);
        if let Some(replayed) = replay_start(pool, query, user, count, wanted.topics).await? {
            position.meet(&Position::before(replayed, &page.batch.snapshot));
            reading.own = reading.own.min(replayed.xid);
            reading.replayed = Some(replayed);
        }
    }
    position.meet(wanted.opened);
    position.meet(cursor.as_ref().unwrap_or(&Position::default()));
    let topics = TopicPage {
        query: &sql.topic_page,
        user: wanted.user,
        position: &position,
        late: &LateWanted::of(&position),
        topics: wanted.topics,
        granted_since: wanted.granted_since,
        first: Some(&reading),
    };
    let mut page = topic_page(pool, topics, size).await?;
    // A user's own rows are removed only once they were sent, so what counts is whether rows
    // for topics may be missing.
    let may_miss = |&pruned: &Xid| {
        let mut cursor = cursor.iter();
        cursor.any(|cursor| cursor.may_miss(pruned, &page.batch.snapshot))
    };
    page.pruned = page.pruned.filter(may_miss);
    Ok(FirstPage {
        start: FirstStart { position, reading },
        page,
        drained,
    })
}

async fn backlog(
    pool: &Pool,
    wanted: FirstWanted<'_>,
    size: PageSize,
) -> Result<BacklogPage, QueryError> {
    let backlog = Backlog {
        query: wanted.backlog,
        user: wanted.user,
        opened: wanted.opened,
        system_identifier: wanted.system_identifier,
        skipped_rows: SKIPPED_ROWS_BEFORE_NOTING,
    };
    backlog_page(pool, backlog, size).await
}
