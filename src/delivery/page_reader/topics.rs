//! A page of one user's rows and of those of the user's topics.

use tokio_postgres::{Error, Row, types::Type};

use super::{
    size::PageSize,
    user::{UserPage, read_user_page},
};
use crate::{
    delivery::{batch::End, memberships::LateWanted},
    domain::{
        membership::Membership,
        notification::UserId,
        position::{Position, Rest},
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
}

/// What a page says about the topics of its user.
#[derive(Debug)]
pub struct PageTopics {
    /// The user's memberships in the snapshot of the page, without granted topics and
    /// everyone's: at most [`MOST_TOPICS`], and only those that the client asked for if it
    /// asked for any.
    pub memberships: Vec<(Topic, Membership)>,
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
    } = wanted;
    let begun = late.begun.as_ref();
    let first = begun.map(|begun| &*begun.first);
    let (after_xid, after_id) = (
        begun.map(|begun| begun.after.xid),
        begun.map(|begun| begun.after.id),
    );
    let names =
        |topics: &[Topic]| -> Vec<String> { topics.iter().map(ToString::to_string).collect() };
    let asked = topics.asked.as_deref().map(names);
    // One more shows whether there are more.
    let most = MOST_TOPICS as i64 + 1;
    let nothing: (Option<Xid>, Option<Vec<Xid>>, Option<Vec<i64>>) = (None, None, None);
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
                (&first, Type::PG_SNAPSHOT),
                (&after_xid, Type::XID8),
                (&after_id, Type::INT8),
                (&most, Type::INT8),
                (&asked, Type::TEXT_ARRAY),
                (&names(&topics.granted), Type::TEXT_ARRAY),
                // Only the first page of a connection without an id differs.
                (&None::<&Snapshot>, Type::PG_SNAPSHOT),
                (&nothing.0, Type::XID8),
                (&nothing.1, Type::XID8_ARRAY),
                (&nothing.2, Type::INT8_ARRAY),
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
    page.topics = Some(read_topics(head)?);
    Ok(page)
}

/// A name that is no topic is left out: no row can have it.
fn read_topics(head: &Row) -> Result<PageTopics, Error> {
    let names: Vec<String> = head.try_get("topics")?;
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
