//! `tidings status`: the state of the database and the bridges, on one page.

use std::io::Write;

use serde_json::{Value, json};
use tokio_postgres::{Row, error::SqlState, types::Type};

use crate::{
    check::{self, Report},
    cli::{
        AnyError,
        output::{Bytes, Colour, Count, Span, print_json, print_report},
    },
    config::{Form, StatusOptions},
    monitoring::database_state::{Adopted, Bridge, DatabaseState, Found, Pending, Topics},
    postgres::{
        connect::{Borrowed, Queries},
        schema,
    },
    runtime::escape,
};

/// The state of the database and the bridges.
#[derive(Debug)]
pub struct Status {
    place: String,
    schema: String,
    version: Option<i32>,
    facts: Row,
    /// How full the notification queue is, from 0 to 1; `None` if this role may not see
    /// it.
    queue: Option<f64>,
    survey: DatabaseState,
    /// What `check` finds in this state.
    pub report: Report,
}

/// Reads the state.
///
/// # Errors
///
/// An error, if the database can't be reached or read.
pub async fn look(options: &StatusOptions) -> Result<Status, AnyError> {
    let (url, schema) = (options.database.session_url()?, &options.database.schema);
    let mut report = Report::default();
    report.findings.extend(check::direct(&url).await);
    let client = Borrowed::to_read(&url).await?;
    let state = check::state(&client, schema, &options.thresholds).await?;
    report.findings.extend(state.findings);
    report.unseen.extend(state.unseen);
    let names = ["notifications", "tidings_bell"].map(|name| schema.qualified(name));
    let names = names.each_ref().map(|name| (name as _, Type::TEXT));
    let facts = client
        .query_typed_one(include_str!("../../sql/status.sql"), &names)
        .await?;
    let usage = include_str!("../../sql/queue_usage.sql");
    let queue = match client.query_typed_one(usage, &[]).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => None,
        row => Some(row?.try_get("usage")?),
    };
    Ok(Status {
        queue,
        place: url.to_string(),
        schema: schema.to_string(),
        version: schema::found(&client, schema).await,
        facts,
        survey: DatabaseState::take(&client, schema).await,
        report,
    })
}

impl Status {
    pub fn print(&self, output: &mut impl Write, form: Form) -> Result<(), AnyError> {
        match form {
            Form::Json => Ok(print_json(output, &self.json()?)?),
            Form::Text => self.print_text(output, Colour::of_stdout()),
        }
    }

    fn print_text(&self, output: &mut impl Write, colour: Colour) -> Result<(), AnyError> {
        let facts = &self.facts;
        // Roles, programs and bridges choose their own names, which may contain escape
        // sequences.
        let mut line = |name: &str, text: String| {
            let (name, text) = (colour.faint(&format!("{name:12}")), escape::line(&text));
            writeln!(output, "{name} {text}")
        };
        let server: String = facts.try_get("server")?;
        let role: String = facts.try_get("role")?;
        let up = Span(facts.try_get("up")?);
        line(
            "server",
            format!(
                "PostgreSQL {server} at {}, up for {up}; connected as {role}",
                self.place
            ),
        )?;
        line(
            "schema",
            match self.version {
                Some(version) => format!(
                    "{}, version {version} (this tidings comes with {})",
                    self.schema,
                    schema::version()
                ),
                None => format!("{}, version unknown", self.schema),
            },
        )?;
        line("table", table(facts)?)?;
        line(
            "pending",
            match &self.survey.pending {
                Found::Unknown { unknown } => format!("unknown: {unknown}"),
                Found::So(pending) => waiting(pending),
            },
        )?;
        match &self.survey.bridges {
            Found::Unknown { unknown } => line("bridges", format!("unknown: {unknown}"))?,
            Found::So(bridges) if bridges.is_empty() => line("bridges", "none".to_owned())?,
            Found::So(bridges) => {
                for found in bridges {
                    line("bridges", bridge(found))?;
                }
            }
        }
        match &self.survey.adopted {
            Found::Unknown { unknown } => line("adopted", format!("unknown: {unknown}"))?,
            Found::So(tables) if tables.is_empty() => line("adopted", "none".to_owned())?,
            Found::So(tables) => {
                for table in tables {
                    line("adopted", adopted(table))?;
                }
            }
        }
        line(
            "topics",
            match &self.survey.topics {
                Found::Unknown { unknown } => format!("unknown: {unknown}"),
                Found::So(topics) => followed(topics),
            },
        )?;
        line(
            "doorbell",
            match facts.try_get("rings")? {
                Some(true) => "writers send NOTIFY: a bridge is asleep".to_owned(),
                Some(false) => "writers don't send NOTIFY: bridges are polling, or none is \
                                connected"
                    .to_owned(),
                None => "unknown".to_owned(),
            },
        )?;
        line(
            "queue",
            match self.queue {
                Some(usage) => format!("{:.4} % full", usage * 100.0),
                None => "unknown".to_owned(),
            },
        )?;
        let longest: Option<String> = facts.try_get("longest")?;
        line(
            "transaction",
            match (longest, facts.try_get("longest_seconds")?) {
                (Some(who), Some(seconds)) => {
                    format!("the longest has been open for {}: {who}", Span(seconds))
                }
                _ if self.report.unseen.is_empty() => "none open".to_owned(),
                _ => "none open that this role may see".to_owned(),
            },
        )?;
        line("vacuum", vacuum(facts)?)?;
        print_report(output, &self.report, colour)?;
        if self.report.wrong() == 0 {
            writeln!(output, "{}", colour.calm("no problems"))?;
        }
        Ok(())
    }

    fn json(&self) -> Result<Value, AnyError> {
        let facts = &self.facts;
        let longest: Option<String> = facts.try_get("longest")?;
        Ok(json!({
            "server": {
                "version": facts.try_get::<_, String>("server")?,
                "address": self.place,
                "standby": facts.try_get::<_, bool>("standby")?,
                "up_seconds": facts.try_get::<_, f64>("up")?,
            },
            "schema": {
                "name": self.schema,
                "version": self.version,
                "needed": schema::version(),
            },
            "table": {
                "rows": facts.try_get::<_, Option<i64>>("rows")?,
                "bytes": facts.try_get::<_, Option<i64>>("bytes")?,
                "index_bytes": facts.try_get::<_, Option<i64>>("index_bytes")?,
                "dead_rows": facts.try_get::<_, Option<i64>>("dead")?,
                "vacuumed_seconds_ago": facts.try_get::<_, Option<f64>>("vacuumed")?,
            },
            "pending": self.survey.pending,
            "bridges": self.survey.bridges,
            "adopted": self.survey.adopted,
            "topics": self.survey.topics,
            "writers_ring": facts.try_get::<_, Option<bool>>("rings")?,
            "queue_usage": self.queue,
            "longest_transaction": {
                "session": longest,
                // The name of earlier releases.
                "who": longest,
                "seconds": facts.try_get::<_, Option<f64>>("longest_seconds")?,
            },
            "check": self.report.json(),
        }))
    }
}

fn table(facts: &Row) -> Result<String, tokio_postgres::Error> {
    let Some(bytes) = facts.try_get("bytes")? else {
        return Ok("none".to_owned());
    };
    let rows = match facts.try_get("rows")? {
        Some(rows) => format!("about {}", counted(rows, "row")),
        None => "rows not counted yet (run analyze)".to_owned(),
    };
    let indexes = facts.try_get::<_, Option<i64>>("index_bytes")?;
    Ok(format!(
        "{rows}, {} of which {} are indexes",
        Bytes(bytes),
        Bytes(indexes.unwrap_or_default())
    ))
}

fn waiting(pending: &Pending) -> String {
    let (rows, users) = (counted(pending.rows, "row"), counted(pending.users, "user"));
    match pending.oldest_seconds {
        Some(age) => format!("{rows} for {users}, the oldest waiting for {}", Span(age)),
        None => rows,
    }
}

fn followed(topics: &Topics) -> String {
    if topics.topics == 0 {
        return "none".to_owned();
    }
    let (subscriptions, rows) = (
        counted(topics.subscriptions, "subscription"),
        counted(topics.rows, "row"),
    );
    let all = counted(topics.topics, "topic");
    match topics.newest_seconds {
        Some(ago) => format!(
            "{all}, {subscriptions}, {rows}, the newest created {} ago",
            Span(ago)
        ),
        None => format!("{all}, {subscriptions}, {rows}"),
    }
}

/// As in "1 row" and "1,000 rows".
fn counted(number: i64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", Count(number))
}

fn bridge(bridge: &Bridge) -> String {
    let Bridge {
        version,
        address,
        state,
        ..
    } = bridge;
    let connections = counted(bridge.connections, "connection");
    let up = Span(bridge.up_seconds);
    format!("{version} at {address}, {state}, {connections}, up for {up}")
}

fn adopted(adopted: &Adopted) -> String {
    let table = &adopted.table;
    match (adopted.marks, adopted.swept_seconds) {
        (false, _) => table.clone(),
        (true, None) => format!("{table}, rows will be marked there by the next bridge"),
        (true, Some(ago)) => {
            format!(
                "{table}, rows are marked there, last checked {} ago",
                Span(ago)
            )
        }
    }
}

fn vacuum(facts: &Row) -> Result<String, tokio_postgres::Error> {
    let dead = facts.try_get::<_, Option<i64>>("dead")?.unwrap_or_default();
    Ok(match facts.try_get("vacuumed")? {
        Some(ago) => format!("{} dead rows, last vacuumed {} ago", Count(dead), Span(ago)),
        None => format!("{} dead rows, never vacuumed", Count(dead)),
    })
}
