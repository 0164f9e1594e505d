//! Fills a table within a minute so that it looks as if it had been in use for long:
//! millions of rows, most of them sent.

use std::{fmt::Write, pin::pin};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Client;

use crate::{Result, server::Database, subject::Users};

/// Rows per transaction. Transaction ids are consumed for them, so that the rows look as
/// if they had been written one by one.
const PER_TRANSACTION: u64 = 100;

/// Bytes that are sent to the server at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Users who have an unsent row and no stream.
pub const AWAY: &str = "away";

/// Rows that exist before anything is measured.
#[derive(Clone, Copy, Debug)]
pub struct Retained {
    /// The number of all rows.
    pub rows: u64,
    /// The users of the sent rows, assigned in turn.
    pub users: Users,
    /// A user with many rows, and their number. They are scattered among the others.
    pub heavy: Option<(Users, u64)>,
    /// The number of users who are away; each has one of the newest rows, unsent.
    pub away: u64,
}

impl Retained {
    /// Fills the table, which is empty, and returns the last row's id.
    pub async fn fill(self, database: &Database) -> Result<i64> {
        let client = database.connect().await?;
        let first = burn(&client, self.rows.div_ceil(PER_TRANSACTION)).await?;
        // Building an index from sorted rows is much faster than growing it with them. In
        // the transaction that truncates, rows are frozen as they are copied, as if they
        // had been vacuumed since.
        let indexes = "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) \
                       from pg_index \
                       where indrelid = 'notifications'::regclass and not indisprimary";
        let indexes = client.query(indexes, &[]).await?;
        client
            .batch_execute(
                "begin; set local maintenance_work_mem = '256MB'; truncate notifications",
            )
            .await?;
        for index in &indexes {
            let name: String = index.get(0);
            client.batch_execute(&format!("drop index {name}")).await?;
        }
        self.copy(&client, first).await?;
        for index in &indexes {
            client.batch_execute(index.get(1)).await?;
        }
        client.batch_execute("commit").await?;
        database.vacuum("notifications").await?;
        let last = "select coalesce(max(id), 0) from notifications";
        Ok(client.query_one(last, &[]).await?.get(0))
    }

    async fn copy(self, client: &Client, first: u64) -> Result<()> {
        let copy = "copy notifications (user_id, text, sent_at, xid) from stdin (freeze)";
        let mut sink = pin!(client.copy_in::<_, Bytes>(copy).await?);
        let mut lines = String::with_capacity(2 * CHUNK_BYTES);
        for row in 0..self.rows {
            self.line(&mut lines, row, first + row / PER_TRANSACTION)?;
            if lines.len() >= CHUNK_BYTES {
                sink.feed(Bytes::copy_from_slice(lines.as_bytes())).await?;
                lines.clear();
            }
        }
        sink.feed(Bytes::from(lines)).await?;
        sink.finish().await?;
        Ok(())
    }

    /// Appends the row in COPY format.
    fn line(self, lines: &mut String, row: u64, transaction: u64) -> Result<()> {
        let sent = match row < self.rows.saturating_sub(self.away) {
            true => "now",
            false => "\\N",
        };
        match self.heavy {
            _ if sent != "now" => write!(lines, "{AWAY}-{row}")?,
            Some((user, rows)) if row.is_multiple_of(self.rows / rows) => {
                lines.push_str(&user.name(0));
            }
            _ => lines.push_str(&self.users.name(self.users.of(row))),
        }
        // The text must not look like that of a row of the run.
        writeln!(
            lines,
            "\tYour build of the branch main is red: 3 of 214 tests failed. retained={row}\t{sent}\t{transaction}"
        )?;
        Ok(())
    }
}

/// Consumes this many transaction ids, and returns the first of them: a row's transaction
/// must have been assigned.
async fn burn(client: &Client, transactions: u64) -> Result<u64> {
    let one = client
        .query_one("select pg_current_xact_id()::text", &[])
        .await?;
    let one: String = one.get(0);
    // Each separately: statements that are sent together are one transaction.
    let burn = format!(
        "do $$ begin for i in 1..{transactions} loop \
             perform pg_current_xact_id(); commit; \
         end loop; end $$"
    );
    for work in [
        "set synchronous_commit = off",
        &burn,
        "reset synchronous_commit",
    ] {
        client.batch_execute(work).await?;
    }
    Ok(one.parse::<u64>()? + 1)
}
