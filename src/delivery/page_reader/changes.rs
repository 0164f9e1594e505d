//! The memberships that have changed since the tail was last read.

use std::sync::Arc;

use tokio_postgres::{Client, Error, Row, Statement};

use crate::{
    delivery::memberships::MembershipChange,
    domain::{
        membership::Membership,
        notification::UserId,
        snapshot::{Snapshot, Xid},
        topic::Topic,
    },
};

/// How many changes are read one by one. Reading them takes a tenth of a second, in which
/// no row is delivered, and some megabytes. If there are more, all connections read their
/// memberships again.
const CHANGES: usize = 20_000;

/// Reads the changes that `since` doesn't show, in the order of their transactions.
///
/// Call it in the transaction that reads the tail, so that both are of one snapshot.
pub async fn membership_changes(
    client: &Client,
    query: &Statement,
    since: &Snapshot,
) -> Result<Vec<Arc<MembershipChange>>, Error> {
    let most = CHANGES as i64 + 1;
    let rows = client
        .query(query, &[&since.xmax(), &since.running_xids(), &most])
        .await?;
    if rows.len() > CHANGES {
        return Ok(vec![Arc::new(MembershipChange::Any { user: None })]);
    }
    let changes = rows.iter().map(|row| Ok(read_change(row)?.map(Arc::new)));
    changes.filter_map(Result::transpose).collect()
}

/// `None` if no user can have the membership.
fn read_change(row: &Row) -> Result<Option<MembershipChange>, Error> {
    let user: Option<&str> = row.try_get("user_id")?;
    let topic: Option<&str> = row.try_get("topic")?;
    let Some(user) = user else {
        return Ok(Some(MembershipChange::Any { user: None }));
    };
    let Some(user) = UserId::parse(user) else {
        return Ok(None);
    };
    let Some(topic) = topic else {
        return Ok(Some(MembershipChange::Any { user: Some(user) }));
    };
    let xid = row.try_get("xid")?;
    let joined: Option<Xid> = row.try_get("joined")?;
    let since: Option<Snapshot> = row.try_get("since")?;
    Ok(Topic::parse(topic).map(|topic| MembershipChange::One {
        user,
        topic,
        xid,
        now: joined.map(|xid| Membership {
            xid: Some(xid),
            since: since.map(Arc::new),
        }),
    }))
}
