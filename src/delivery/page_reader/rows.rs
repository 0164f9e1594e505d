//! Decodes the rows of a page, and recognizes those that can't be delivered.

use tokio_postgres::{Error, Row};

use crate::domain::{
    notification::{Addressee, Expiry, Notification, UserId},
    position::RowKey,
    snapshot::Xid,
    topic::Topic,
};

/// The maximum length of a text in bytes, as in the column's constraint. The queries
/// leave out larger texts.
pub(super) const TEXT_BYTES: usize = 1 << 20;

/// The maximum length of an event's name in bytes, as in the column's constraint.
const EVENT_BYTES: usize = 100;

/// The maximum length of a ref in bytes, as in the column's constraint.
const REF_BYTES: usize = 255;

/// Rows that were read and can't be delivered. They exist only if the constraints of the
/// table that exclude them were dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnusableRows {
    pub count: u64,
    pub first: Option<(RowKey, Flaw)>,
}

impl UnusableRows {
    pub(super) fn add(&mut self, row: RowKey, flaw: Flaw) {
        self.count += 1;
        self.first.get_or_insert((row, flaw));
    }
}

/// Why a row can't be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It names no valid user, and no topic.
    #[error("user_id is not 1 to {} bytes long", UserId::MAX_BYTES)]
    User,
    /// It names no valid topic.
    #[error(
        "topic is not 1 to {} bytes without control characters",
        Topic::MAX_BYTES
    )]
    Topic,
    /// It is null or too long.
    #[error("text is null or longer than {TEXT_BYTES} bytes")]
    Text,
    /// It would break the stream's format.
    #[error("event is not one line of 1 to {EVENT_BYTES} bytes")]
    Event,
    /// It is too long.
    #[error("ref is longer than {REF_BYTES} bytes")]
    Ref,
}

/// A row returned by a page's statement, of which only the key has been decoded.
pub(super) struct Returned<'a> {
    pub(super) key: RowKey,
    pub(super) part: Part,
    /// Whether it exceeds the page's limit in bytes.
    pub(super) is_beyond: bool,
    pub(super) row: &'a Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The next rows of transactions that were read in part before.
    Begun,
    /// Rows of all other transactions.
    Others,
}

/// Returns `None` for the row that is returned if nothing is new.
pub(super) fn read_key(row: &Row) -> Result<Option<Returned<'_>>, Error> {
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
pub(super) fn within(rows: &[Returned<'_>], most: usize) -> usize {
    let rows = rows.iter().take(most);
    rows.take_while(|row| !row.is_beyond).count()
}

/// A notification with whom it is for, from a page of the tail.
pub(super) fn read_addressed(key: RowKey, row: &Row) -> Result<(Addressee, Notification), Flaw> {
    let notification = read_notification(key, row)?;
    let addressee = match &notification.topic {
        Some(topic) => Addressee::Topic(topic.clone()),
        None => Addressee::User(read_user(row)?),
    };
    Ok((addressee, notification))
}

fn read_user(row: &Row) -> Result<UserId, Flaw> {
    let user: Option<&str> = row.try_get("user_id").map_err(|_| Flaw::User)?;
    user.and_then(UserId::parse).ok_or(Flaw::User)
}

/// `None` if the row is for one user.
fn read_topic(row: &Row) -> Result<Option<Topic>, Flaw> {
    // Pages of one user's own rows don't have the column.
    let topic: Option<&str> = row.try_get("topic").unwrap_or_default();
    topic
        .map(|topic| Topic::parse(topic).ok_or(Flaw::Topic))
        .transpose()
}

pub(super) fn read_notification(key: RowKey, row: &Row) -> Result<Notification, Flaw> {
    let text: Option<String> = row.try_get("text").map_err(|_| Flaw::Text)?;
    let event: Option<String> = row.try_get("event").map_err(|_| Flaw::Event)?;
    if event.as_deref().is_some_and(|name| !is_one_line(name)) {
        return Err(Flaw::Event);
    }
    let reference: Option<String> = row.try_get("ref").map_err(|_| Flaw::Ref)?;
    if reference
        .as_deref()
        .is_some_and(|key| key.len() > REF_BYTES)
    {
        return Err(Flaw::Ref);
    }
    Ok(Notification {
        key,
        event,
        text: text.ok_or(Flaw::Text)?,
        // Decoding fails if it is infinite.
        created_at: row.try_get("created_at").unwrap_or_default(),
        expires: Expiry::from_seconds_left(row.try_get("seconds_left").unwrap_or_default()),
        reference,
        topic: read_topic(row)?,
    })
}

fn is_one_line(event: &str) -> bool {
    (1..=EVENT_BYTES).contains(&event.len()) && !event.contains(['\r', '\n'])
}
