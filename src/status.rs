//! `tidings status`: what is so, on a page.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_postgres::{Client, Row, types::Type};

use crate::{
    check::{self, Report},
    config::{Form, StatusOptions},
    database::{self, describe},
    schema::{self, SchemaError, SchemaName},
    terminal::{Bytes, Colour, Count, Span, print_report},
};

/// How long it may take to count what is pending.
const PENDING_LIMIT: Duration = Duration::from_secs(5);

/// What is so.
#[derive(Debug)]
pub struct Status {
    place: String,
    schema: String,
    version: Option<i32>,
    facts: Row,
    /// Or why it is not known.
    pending: Result<Row, String>,
    /// Or why they are not known.
    bridges: Result<Vec<Row>, String>,
    /// What is wrong with it.
    pub report: Report,
}

/// Looks.
///
/// # Errors
///
/// [`SchemaError`], if nobody answers.
pub async fn look(options: &StatusOptions) -> Result<Status, StatusError> {
    let (url, schema) = (options.database.session_url()?, &options.database.schema);
    let mut report = Report::default();
    report.findings.extend(check::direct(&url).await);
    let (client, _driver) = database::connect(&url, |_| ()).await?;
    let state = check::state(&client, schema, &options.thresholds).await?;
    report.findings.extend(state.findings);
    report.unseen.extend(state.unseen);
    let names = ["notifications", "tidings_bell"].map(|name| schema.qualified(name));
    let names = names.each_ref().map(|name| (name as _, Type::TEXT));
    let facts = client
        .query_typed_one(include_str!("../sql/status.sql"), &names)
        .await?;
    Ok(Status {
        place: url.to_string(),
        schema: schema.to_string(),
        version: schema::found(&client, schema).await,
        facts,
        pending: pending(&client, schema).await,
        bridges: bridges(&client, schema).await,
        report,
    })
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// A setting.
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    /// No connection.
    #[error("{0}")]
    Connect(#[from] database::ConnectError),
    /// The schema.
    #[error("{0}")]
    Schema(#[from] SchemaError),
    /// Postgres refused.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

async fn pending(client: &Client, schema: &SchemaName) -> Result<Row, String> {
    let query = schema.fill(include_str!("../sql/status_pending.sql"));
    match timeout(PENDING_LIMIT, client.query_typed_one(&query, &[])).await {
        Ok(counted) => counted.map_err(|error| describe(&error)),
        Err(_) => {
            // What was asked is still being counted, and would keep the session.
            let _ = client
                .cancel_token()
                .cancel_query(tokio_postgres::NoTls)
                .await;
            Err(format!(
                "to count it takes longer than {} s",
                PENDING_LIMIT.as_secs()
            ))
        }
    }
}

async fn bridges(client: &Client, schema: &SchemaName) -> Result<Vec<Row>, String> {
    let query = schema.fill(include_str!("../sql/status_bridges.sql"));
    let found = client.query_typed(&query, &[]).await;
    found.map_err(|error| describe(&error))
}

impl Status {
    /// Prints it.
    ///
    /// # Errors
    ///
    /// [`PrintError`].
    pub fn print(&self, output: &mut impl Write, form: Form) -> Result<(), PrintError> {
        match form {
            Form::Json => Ok(writeln!(output, "{:#}", self.json()?)?),
            Form::Text => self.print_text(output, Colour::of_stdout()),
        }
    }

    fn print_text(&self, output: &mut impl Write, colour: Colour) -> Result<(), PrintError> {
        let facts = &self.facts;
        let mut line = |name: &str, text: String| {
            writeln!(output, "{} {text}", colour.faint(&format!("{name:12}")))
        };
        let server: String = facts.try_get("server")?;
        let role: String = facts.try_get("role")?;
        let up = Span(facts.try_get("up")?);
        line(
            "server",
            format!(
                "PostgreSQL {server} at {}, up for {up}; seen as {role}",
                self.place
            ),
        )?;
        line(
            "schema",
            match self.version {
                Some(version) => format!(
                    "{}, version {version} (this tidings brings {})",
                    self.schema,
                    schema::version()
                ),
                None => format!("{}, of no known version", self.schema),
            },
        )?;
        line("table", table(facts)?)?;
        line(
            "pending",
            match &self.pending {
                Err(reason) => format!("not known: {reason}"),
                Ok(row) => waiting(row)?,
            },
        )?;
        match &self.bridges {
            Err(reason) => line("bridges", format!("not known: {reason}"))?,
            Ok(bridges) if bridges.is_empty() => line("bridges", "none".to_owned())?,
            Ok(bridges) => {
                for row in bridges {
                    line("bridges", bridge(row)?)?;
                }
            }
        }
        line(
            "bell",
            match facts.try_get("rings")? {
                Some(true) => "writers ring: a bridge sleeps".to_owned(),
                Some(false) => "writers need not ring: bridges poll, or there are none".to_owned(),
                None => "not known".to_owned(),
            },
        )?;
        let queue: f64 = facts.try_get("queue")?;
        line("queue", format!("{:.4} % full", queue * 100.0))?;
        let longest: Option<String> = facts.try_get("longest")?;
        line(
            "transaction",
            match (longest, facts.try_get("longest_seconds")?) {
                (Some(who), Some(seconds)) => format!("the longest, for {}: {who}", Span(seconds)),
                _ if self.report.unseen.is_empty() => "none open".to_owned(),
                _ => "none open that can be seen".to_owned(),
            },
        )?;
        line("vacuum", vacuum(facts)?)?;
        print_report(output, &self.report, colour)?;
        if self.report.wrong() == 0 {
            writeln!(output, "{}", colour.calm("in order"))?;
        }
        Ok(())
    }

    fn json(&self) -> Result<Value, PrintError> {
        let facts = &self.facts;
        let pending = match &self.pending {
            Err(reason) => json!({ "unknown": reason }),
            Ok(row) => json!({
                "rows": row.try_get::<_, i64>("pending")?,
                "users": row.try_get::<_, i64>("users")?,
                "oldest_seconds": row.try_get::<_, Option<f64>>("age")?,
            }),
        };
        let bridges = match &self.bridges {
            Err(reason) => json!({ "unknown": reason }),
            Ok(rows) => rows
                .iter()
                .map(|row| {
                    Ok(json!({
                        "bridge": row.try_get::<_, String>("bridge")?,
                        "state": row.try_get::<_, Option<String>>("state")?,
                        "connections": row.try_get::<_, Option<i64>>("connections")?,
                    }))
                })
                .collect::<Result<Vec<_>, tokio_postgres::Error>>()?
                .into(),
        };
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
            "pending": pending,
            "bridges": bridges,
            "writers_ring": facts.try_get::<_, Option<bool>>("rings")?,
            "queue_usage": facts.try_get::<_, f64>("queue")?,
            "longest_transaction": {
                "who": facts.try_get::<_, Option<String>>("longest")?,
                "seconds": facts.try_get::<_, Option<f64>>("longest_seconds")?,
            },
            "check": self.report.json(),
        }))
    }
}

/// Why it can't be printed.
#[derive(Debug, thiserror::Error)]
pub enum PrintError {
    /// Nobody reads it.
    #[error("{0}")]
    Output(#[from] io::Error),
    /// Postgres answered something else.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

fn table(facts: &Row) -> Result<String, tokio_postgres::Error> {
    let Some(bytes) = facts.try_get("bytes")? else {
        return Ok("none".to_owned());
    };
    let rows = match facts.try_get("rows")? {
        Some(rows) => format!("about {} rows", Count(rows)),
        None => "rows not counted yet (run analyze)".to_owned(),
    };
    let indexes = facts.try_get::<_, Option<i64>>("index_bytes")?;
    Ok(format!(
        "{rows}, {} of which {} are indexes",
        Bytes(bytes),
        Bytes(indexes.unwrap_or_default())
    ))
}

fn waiting(row: &Row) -> Result<String, tokio_postgres::Error> {
    let pending = Count(row.try_get("pending")?);
    let users = Count(row.try_get("users")?);
    Ok(match row.try_get("age")? {
        Some(age) => format!(
            "{pending} rows of {users} users, the oldest for {}",
            Span(age)
        ),
        None => format!("{pending} rows"),
    })
}

fn bridge(row: &Row) -> Result<String, tokio_postgres::Error> {
    let mut text: String = row.try_get("bridge")?;
    if let Some(state) = row.try_get::<_, Option<&str>>("state")? {
        text = format!("{text}, {state}");
    }
    if let Some(connections) = row.try_get("connections")? {
        text = format!("{text}, {} connections", Count(connections));
    }
    Ok(text)
}

fn vacuum(facts: &Row) -> Result<String, tokio_postgres::Error> {
    let dead = facts.try_get::<_, Option<i64>>("dead")?.unwrap_or_default();
    Ok(match facts.try_get("vacuumed")? {
        Some(ago) => format!("{} dead rows, last vacuumed {} ago", Count(dead), Span(ago)),
        None => format!("{} dead rows, never vacuumed", Count(dead)),
    })
}
