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
        memberships::{LateRows, Memberships, Taken, TooManyEnded},
        page_reader::{
            self, FirstReading, FirstWanted, MOST_TOPICS, PageSize, PageTopics, TopicPage, UserPage,
        },
    },
    domain::{
        history::Incarnation,
        notification::Notification,
        position::{Position, Rest},
        snapshot::Snapshot,
        topic::{Topic, TopicChoice},
    },
    postgres::{
        connect::{Borrowed, Queries},
        crash_sign::CrashSign,
        memberships::MembershipSource,
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
    sql: Sql,
    topics: TopicChoice,
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
    let memberships = MembershipSource::find(&url, options.memberships.as_ref()).await?;
    let sql = Sql::with_memberships(sign, schema, memberships);
    let mut tail = TailPrinter {
        options,
        output,
        pool,
        sql,
        topics: TopicChoice {
            granted: Arc::default(),
            asked: (!options.topics.is_empty()).then(|| options.topics.as_slice().into()),
        },
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

/// What was printed.
struct Seen {
    /// The server incarnation in which the position is valid.
    incarnation: Incarnation,
    position: Position,
    memberships: Memberships,
    /// `None` after the first reading.
    first: Option<FirstReading>,
}

impl<W: Write> TailPrinter<'_, W> {
    /// Prints what a connection without a position receives first.
    async fn begin(&mut self) -> Result<Seen, AnyError> {
        let client = Borrowed::to_read(&self.options.database.url()?).await?;
        let identity = include_str!("../../sql/system_identifier.sql");
        let row = client.query_typed_one(identity, &[]).await?;
        let now = client.query_typed_one(&self.sql.tail_start, &[]).await?;
        let snapshot: Snapshot = now.try_get("snapshot")?;
        let wanted = FirstWanted {
            backlog: &self.sql.backlog_page,
            user: Some(&self.options.user),
            replay: self.options.replay,
            opened: &Arc::new(Position::after(now.try_get("top")?, &snapshot)),
            system_identifier: row.try_get("system_identifier")?,
            topics: &self.topics,
            granted_since: Some(&snapshot),
        };
        let (pool, size) = (&self.pool, PageSize::USER);
        let first = page_reader::first_page(pool, &self.sql, wanted, || None, size).await?;
        let mut seen = Seen {
            incarnation: first.page.incarnation,
            position: first.start.position,
            memberships: Memberships::default(),
            first: Some(first.start.reading),
        };
        seen.memberships.start(&seen.position);
        self.complain(&first.page.topics);
        if self.print_page(first.page, &mut seen)? == Rest::More {
            self.look(&mut seen).await?;
        }
        Ok(seen)
    }

    /// Prints the rows that are new to the position.
    async fn look(&mut self, seen: &mut Seen) -> Result<(), AnyError> {
        loop {
            let opened = seen.first.as_ref().map(|first| first.opened.as_snapshot());
            let wanted = TopicPage {
                query: &self.sql.topic_page,
                user: Some(&self.options.user),
                position: &seen.position,
                late: &seen.memberships.request(Some(&seen.position)),
                topics: &self.topics,
                granted_since: opened.as_ref(),
                first: seen.first.as_ref(),
            };
            let page = page_reader::topic_page(&self.pool, wanted, PageSize::USER).await?;
            if page.incarnation != seen.incarnation {
                // Transaction ids from before may mean something else now.
                tracing::warn!("the server has crashed or was replaced, starting over");
                *seen = Box::pin(self.begin()).await?;
                return Ok(());
            }
            if self.print_page(page, seen)? == Rest::Nothing {
                return Ok(());
            }
        }
    }

    /// Tells about topics that are left out, as `tidings.topics` does.
    fn complain(&self, found: &PageTopics) {
        let user = escape::line(self.options.user.as_str());
        let is_found = |topic: &Topic| found.memberships.contains(topic);
        for topic in self.topics.refused(is_found) {
            tracing::warn!(
                topic,
                "{user} is not subscribed to {topic}: it is not printed"
            );
        }
        if found.is_truncated {
            tracing::warn!("{user} has more than {MOST_TOPICS} topics: the others are left out");
        }
    }

    /// Prints what a stream would be sent of a page.
    fn print_page(&mut self, page: UserPage, seen: &mut Seen) -> io::Result<Rest> {
        let Seen {
            position,
            memberships,
            ..
        } = seen;
        let batch = &page.batch;
        let late = match batch.end {
            End::Late(rest) => LateRows::Left(rest),
            _ => LateRows::None,
        };
        match memberships.take(position, &batch.snapshot, page.topics.memberships, late) {
            Ok(Taken::Write) => {}
            Ok(Taken::ReadAgain) => return Ok(Rest::More),
            // As after a reconnect. Rows may be repeated.
            Err(TooManyEnded) => {
                *memberships = Memberships::default();
                return Ok(Rest::More);
            }
        }
        for (index, event) in batch.events.iter().enumerate() {
            let notification = event.notification();
            let row = notification.key;
            let is_wanted = match &notification.topic {
                Some(topic) if !topic.is_everyone() => memberships.want(topic, row, false),
                _ => true,
            };
            if is_wanted && !notification.expires.has_passed() {
                self.print(notification)?;
            }
            match batch.is_late() {
                true => memberships.pass_late(row),
                false => batch.advance(position, index),
            }
        }
        batch.finish(position);
        match batch.end {
            End::Late(rest) => memberships.finish_late(rest),
            End::CaughtUp { .. } => {
                if let Some(top) = memberships.top() {
                    position.finish(Some(top), &batch.snapshot, &batch.unread);
                }
                memberships.go_live();
                seen.first = None;
                return Ok(Rest::Nothing);
            }
            End::MorePages | End::Live(_) | End::Recent(_) => {}
        }
        Ok(Rest::More)
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
                if let Some(topic) = &notification.topic {
                    line["topic"] = json!(topic.as_str());
                }
                writeln!(self.output, "{}", escape::json(&line.to_string()))?;
            }
            // All of them may contain escape sequences.
            Form::Text => {
                let created_at = created_at.map_or_else(|| "-".to_owned(), |time| time.to_string());
                let event = escape::line(event.unwrap_or("message"));
                let topic = notification.topic.as_ref();
                let topic = topic.map(|topic| format!(" for {}", escape::line(topic.as_str())));
                let (topic, text) = (topic.unwrap_or_default(), escape::line(&notification.text));
                writeln!(self.output, "{id}  {created_at}  {event}{topic}  {text}")?;
            }
        }
        self.output.flush()
    }
}
