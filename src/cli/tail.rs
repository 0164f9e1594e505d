//! `tidings tail`: prints what a user's stream shows, without taking it from the user.
//!
//! It reads the table as a stream does, from a position of its own, and marks nothing.
//! Opening the user's stream on a bridge would show the same rows, but would mark the
//! user's backlog as sent, so the user would not receive it.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::{runtime::Handle, time::sleep};

use crate::{
    cli::{AnyError, output},
    config::{Form, TailOptions},
    delivery::{
        batch::End,
        page_reader::{self, Backlog, PageSize, UserPage},
    },
    domain::{
        history::Incarnation, notification::Notification, position::Position, snapshot::Snapshot,
    },
    postgres::{
        connect::{Borrowed, Queries},
        crash_sign::CrashSign,
        pool::{Pool, PoolMode, QueryError},
        queries::Sql,
    },
    runtime::{error_chain::ErrorChain, escape},
};

/// Polling interval: too short for a person to notice, and a poll takes a fraction of a
/// millisecond.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long to wait after a failed poll.
const TRY_AGAIN: Duration = Duration::from_secs(1);

struct TailPrinter<'a, W> {
    options: &'a TailOptions,
    output: &'a mut W,
    pool: Pool,
    sql: Arc<Sql>,
}

/// Prints the user's unsent rows and then new rows, until standard output has no reader
/// any more.
///
/// # Errors
///
/// An error, if the first read or printing fails. If the database goes away later, `tail` retries.
pub async fn run(output: &mut impl Write, options: &TailOptions) -> Result<(), AnyError> {
    tokio::select! {
        outcome = follow(output, options) => outcome,
        () = output::closed_stdout() => Ok(()),
    }
}

async fn follow(output: &mut impl Write, options: &TailOptions) -> Result<(), AnyError> {
    let url = options.database.url()?;
    let pool = Pool::new(&url, PoolMode::Transaction, 1, Handle::current())?;
    // A role that can read the table need not be a bridge's.
    let schema = &options.database.schema;
    let sign = CrashSign::Table.and_of_pool(&pool, schema).await?;
    let sql = Arc::new(Sql::going_by(sign, schema));
    let mut tail = TailPrinter {
        options,
        output,
        pool,
        sql,
    };
    // An error that prevents the first read is reported immediately.
    let mut seen = tail.begin().await?;
    loop {
        sleep(POLL_INTERVAL).await;
        match tail.look(&mut seen).await {
            Ok(()) => {}
            Err(error) if error.is::<QueryError>() => {
                let error = ErrorChain(&*error);
                tracing::warn!(%error, "read failed, retrying: {error}");
                sleep(TRY_AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The position up to which rows were printed, and the server incarnation that it is
/// valid in.
struct Seen {
    position: Position,
    incarnation: Incarnation,
}

impl<W: Write> TailPrinter<'_, W> {
    /// Prints what a connection without a position receives first.
    async fn begin(&mut self) -> Result<Seen, AnyError> {
        let client = Borrowed::to_read(&self.options.database.url()?).await?;
        let identity = include_str!("../../sql/system_identifier.sql");
        let row = client.query_typed_one(identity, &[]).await?;
        let now = client.query_typed_one(&self.sql.tail_start, &[]).await?;
        let snapshot: Snapshot = now.try_get("snapshot")?;
        let opened = Position::after(now.try_get("top")?, &snapshot);
        let backlog = Backlog {
            query: &self.sql.backlog_page,
            user: Some(&self.options.user),
            replay: self.options.replay,
            opened: &opened,
            system_identifier: row.try_get("system_identifier")?,
            skipped_rows: page_reader::SKIPPED_ROWS_BEFORE_NOTING,
        };
        let first = page_reader::backlog_page(&self.pool, backlog, PageSize::USER).await?;
        let mut seen = Seen {
            position: first.start,
            incarnation: first.page.incarnation,
        };
        self.print_page(&first.page, &mut seen.position)?;
        Ok(seen)
    }

    /// Prints the rows that are new to the position.
    async fn look(&mut self, seen: &mut Seen) -> Result<(), AnyError> {
        loop {
            let (user, size) = (Some(&self.options.user), PageSize::USER);
            let own = page_reader::user_page(&self.pool, &self.sql, user, &seen.position, size);
            let page = own.await?.page;
            if page.incarnation != seen.incarnation {
                // Transaction ids from before may mean something else now.
                tracing::warn!("the server has crashed or was replaced, starting over");
                *seen = self.begin().await?;
                return Ok(());
            }
            if !self.print_page(&page, &mut seen.position)? {
                return Ok(());
            }
        }
    }

    /// Returns whether there are more rows.
    fn print_page(&mut self, page: &UserPage, position: &mut Position) -> io::Result<bool> {
        let batch = &page.batch;
        for (index, event) in batch.events.iter().enumerate() {
            let notification = event.notification();
            if !notification.expires.has_passed() {
                self.print(notification)?;
            }
            batch.advance(position, index);
        }
        batch.finish(position);
        Ok(!matches!(batch.end, End::CaughtUp { .. }))
    }

    fn print(&mut self, notification: &Notification) -> io::Result<()> {
        let (id, event) = (notification.key.id, notification.event.as_deref());
        let created_at = notification.created_at;
        match self.options.form.form() {
            Form::Json => {
                let mut line = json!({
                    "id": id,
                    "created_at": created_at,
                    "event": event.unwrap_or("message"),
                    "text": notification.text,
                });
                if let Some(reference) = &notification.reference {
                    line["ref"] = json!(reference);
                }
                writeln!(self.output, "{}", escape::json(&line.to_string()))?;
            }
            // Both may contain escape sequences.
            Form::Text => writeln!(
                self.output,
                "{id}  {}  {}  {}",
                created_at.map_or_else(|| "-".to_owned(), |time| time.to_string()),
                escape::line(event.unwrap_or("message")),
                escape::line(&notification.text)
            )?,
        }
        self.output.flush()
    }
}
