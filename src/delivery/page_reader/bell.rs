//! Whether writers send NOTIFY.

use tokio_postgres::{Client, Error, Row, Statement};

/// A period in which writers send NOTIFY: a value of the sequence `tidings_bell`. No
/// value occurs twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BellGeneration(i64);

/// Whether writers can be relied on to send NOTIFY.
#[derive(Clone, Copy, Debug)]
pub struct BellState {
    /// The period in which they do. `None` if another session was changing it at the same
    /// time.
    pub rings: Option<BellGeneration>,
    /// Whether a writer that may not have sent NOTIFY is still running.
    pub writing: bool,
}

/// Makes writers send NOTIFY for rows of this table.
pub async fn fall_asleep(
    client: &Client,
    query: &Statement,
    table: u32,
) -> Result<BellState, Error> {
    let row = client.query_one(query, &[&table]).await?;
    Ok(BellState {
        rings: read_rings(&row)?,
        writing: row.try_get("writing")?,
    })
}

pub(super) fn read_rings(row: &Row) -> Result<Option<BellGeneration>, Error> {
    let since: Option<i64> = row.try_get("rings_since")?;
    Ok(since.map(BellGeneration))
}
