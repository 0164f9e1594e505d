//! When rows are marked as sent.

use std::time::Duration;

use tokio::time::sleep;

use crate::{Result, clock::Moment, server::Database};

/// Infrequent enough to cost nothing compared with the marks themselves.
const ASKS_AGAIN: Duration = Duration::from_millis(5);

/// Searches from the newest row backwards: rows are marked roughly in order, so while any
/// is unmarked it is found quickly.
const IS_UNMARKED: &str = "select from notifications where sent_at is null and id > $1 \
                           order by id desc limit 1";

/// Waits until no row is unmarked, and returns when that was.
///
/// # Errors
///
/// If rows are still unmarked after `limit`.
pub async fn until_all_marked(database: &Database, limit: Duration) -> Result<Moment> {
    until_marked_after(database, 0, limit).await
}

/// The same for the rows after this one.
pub async fn until_marked_after(database: &Database, id: i64, limit: Duration) -> Result<Moment> {
    let begin = Moment::now();
    let client = database.connect().await?;
    let question = client.prepare(IS_UNMARKED).await?;
    loop {
        if client.query_opt(&question, &[&id]).await?.is_none() {
            return Ok(Moment::now());
        }
        if Moment::now().since(begin) > limit {
            return Err(format!("rows are unmarked after {limit:?}").into());
        }
        sleep(ASKS_AGAIN).await;
    }
}
