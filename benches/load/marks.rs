//! When rows are marked as sent.

use std::time::Duration;

use tokio::time::sleep;

use crate::{Result, clock::Moment, server::Database};

/// Seldom enough to cost nothing beside the marks themselves.
const ASKS_AGAIN: Duration = Duration::from_millis(5);

/// From the newest row back: the marks come about in the order of rows, so that
/// the answer is near as long as it is "there is one".
const IS_UNMARKED: &str = "select from notifications where sent_at is null and id > $1 \
                           order by id desc limit 1";

/// Waits until no row is unmarked, and tells when that was.
///
/// # Errors
///
/// If it isn't so within `limit`.
pub async fn until_all_marked(database: &Database, limit: Duration) -> Result<Moment> {
    until_marked_after(database, 0, limit).await
}

/// The same of the rows after this one.
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
