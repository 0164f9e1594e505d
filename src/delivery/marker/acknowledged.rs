//! Rows that clients acknowledge: a client that returns with its last event id has
//! received every row up to that position.
//!
//! Most of these rows are already marked. The others were in flight when the connection
//! broke, or their marks were lost in a crash. They are looked up in the table, for many
//! clients in one statement, after the clients have received what they missed.

use std::collections::VecDeque;

use tokio_postgres::types::Type;

use crate::{
    delivery::page_reader,
    domain::{
        history::{History, Incarnation},
        notification::UserId,
        position::{EventId, Position, RowKey},
        snapshot::Xid,
    },
    postgres::pool::{Pool, QueryError, READ_LIMIT},
};

/// Clients in one statement, which takes some milliseconds.
const AT_ONCE: usize = 100;

/// How many rows of one client a statement passes over. The next statement continues from
/// there.
const ROWS: i32 = 1_000;

/// How many clients may wait: some 20 MB. The rows of clients beyond that stay unmarked
/// until the client next returns.
const WAITING: usize = 100_000;

/// A user's client has received all rows of the user that are not new to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    user: UserId,
    /// A row that was sent to the client. A position doesn't tell which user it belongs
    /// to, and a browser may return with the id of the user it was logged in as before.
    /// So the acknowledgement counts only if this row is the user's own.
    row: i64,
    position: Position,
    history: History,
    /// Rows from this key on have already been checked.
    before: RowKey,
}

impl Acknowledgement {
    /// What `user` acknowledges by returning with this id. An id that names no row
    /// acknowledges nothing.
    pub fn of(user: &UserId, id: &EventId<'_>) -> Option<Self> {
        (id.row > 0).then(|| Self {
            user: user.clone(),
            row: id.row,
            position: id.position.clone().into_owned(),
            history: id.history,
            before: RowKey {
                xid: id.position.floor(),
                id: 0,
            },
        })
    }
}

/// Waiting acknowledgements, in the order in which the clients returned.
#[derive(Debug, Default)]
pub(super) struct Acknowledgements(VecDeque<Acknowledgement>);

impl Acknowledgements {
    pub(super) fn add(&mut self, acknowledgement: Acknowledgement) {
        if self.0.len() < WAITING {
            self.0.push_back(acknowledgement);
        }
    }

    /// Takes the first ones of one history, for one statement.
    pub(super) fn take(&mut self) -> Vec<Acknowledgement> {
        let Some(history) = self.0.front().map(|first| first.history) else {
            return Vec::new();
        };
        let alike = |each: &&Acknowledgement| each.history == history;
        let count = self.0.iter().take(AT_ONCE).take_while(alike).count();
        let taken = self.0.drain(..count).collect();
        if self.0.is_empty() {
            // An idle bridge keeps no memory of a past stampede.
            self.0 = VecDeque::new();
        }
        taken
    }

    /// Puts back acknowledgements that aren't finished.
    pub(super) fn put_back(&mut self, acknowledgements: Vec<Acknowledgement>) {
        for acknowledgement in acknowledgements.into_iter().rev() {
            self.0.push_front(acknowledgement);
        }
    }
}

#[derive(Debug)]
pub(super) struct AcknowledgedRows {
    /// Unmarked rows that were received.
    pub(super) rows: Vec<(Incarnation, i64)>,
    /// Acknowledgements that cover more rows than one statement passes over.
    pub(super) rest: Vec<Acknowledgement>,
}

/// Looks for unmarked rows that these acknowledgements, all of one history, cover. Finds
/// none if the server has crashed or been replaced since.
pub(super) async fn find(
    pool: &Pool,
    query: &str,
    acknowledgements: &[Acknowledgement],
) -> Result<AcknowledgedRows, QueryError> {
    let mut found = AcknowledgedRows {
        rows: Vec::new(),
        rest: Vec::new(),
    };
    let Some(first) = acknowledgements.first() else {
        return Ok(found);
    };
    let History {
        system_identifier,
        incarnation,
    } = first.history;
    let (mut users, mut rows) = (Vec::new(), Vec::new());
    let (mut xids, mut ids): (Vec<Xid>, Vec<i64>) = (Vec::new(), Vec::new());
    let (mut open_of, mut open): (Vec<i64>, Vec<Xid>) = (Vec::new(), Vec::new());
    let mut open_reads: Vec<i64> = Vec::new();
    for (number, each) in (1..).zip(acknowledgements) {
        users.push(each.user.as_str());
        rows.push(each.row);
        xids.push(each.before.xid);
        ids.push(each.before.id);
        let xids = each.position.open_xids();
        open_of.resize(open_of.len() + xids.len(), number);
        open.extend(xids);
        open_reads.extend(each.position.open_reads());
    }
    let answer = pool
        .query(
            READ_LIMIT,
            query,
            &[
                (&users, Type::TEXT_ARRAY),
                (&rows, Type::INT8_ARRAY),
                (&xids, Type::XID8_ARRAY),
                (&ids, Type::INT8_ARRAY),
                (&open_of, Type::INT8_ARRAY),
                (&open, Type::XID8_ARRAY),
                (&open_reads, Type::INT8_ARRAY),
                (&system_identifier, Type::INT8),
                (&ROWS, Type::INT4),
            ],
        )
        .await?;
    for row in &answer {
        if page_reader::read_incarnation(row)? != incarnation {
            break;
        }
        let number: i64 = row.try_get("number")?;
        let unmarked: Option<Vec<i64>> = row.try_get("unmarked")?;
        let unmarked = unmarked.into_iter().flatten();
        found.rows.extend(unmarked.map(|id| (incarnation, id)));
        let place = usize::try_from(number - 1).unwrap_or_default();
        if let (Some(xid), Some(each)) = (row.try_get("xid")?, acknowledgements.get(place)) {
            let id = row.try_get("id")?;
            found.rest.push(Acknowledgement {
                before: RowKey { xid, id },
                ..each.clone()
            });
        }
    }
    Ok(found)
}
