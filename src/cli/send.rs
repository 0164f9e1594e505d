//! `tidings send` and `tidings ticket`: what applications do in SQL, from the command
//! line.

use std::{
    io::{self, Read},
    time::Duration,
};

use tokio_postgres::{Row, error::SqlState, types::Type};

use crate::{
    cli::AnyError,
    config::{DatabaseOptions, SendOptions, TicketOptions},
    domain::{
        notification::{Addressee, UserId},
        topic::Topic,
    },
    postgres::{
        connect::{Borrowed, DatabaseUrl, Queries},
        pool::Parameter,
        schema::SchemaName,
    },
    runtime::error_chain::ErrorChain,
};

/// More than a notification can hold: the database reports the actual limit.
const INPUT_BYTES: u64 = 2 << 20;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum SqlCommandError {
    #[error("can't read the text from standard input")]
    Input(#[source] io::Error),
    /// This role lacks the privilege.
    #[error(
        "the role {role}, as which DATABASE_URL logs in, may not {what}: use a role in \
         DATABASE_URL that may, or have a DBA run: grant {group} to {role}; ({reason})"
    )]
    Denied {
        /// The role of the session.
        role: String,
        /// What it may not do.
        what: &'static str,
        /// The group whose members may.
        group: &'static str,
        /// The message from Postgres.
        reason: String,
    },
    /// The schema contains no Tidings, or an outdated version.
    #[error(
        "Tidings is not installed in the schema {schema}, or is too old: run `tidings migrate` \
         ({reason})"
    )]
    NoSchema {
        schema: SchemaName,
        /// The message from Postgres.
        reason: String,
    },
}

/// A command that executes one SQL query.
struct SqlCommand<'a> {
    database: &'a DatabaseOptions,
    what: &'static str,
    /// The group whose members may execute it.
    group: &'static str,
}

/// Sends a notification and returns its id.
pub async fn send(options: &SendOptions) -> Result<i64, AnyError> {
    let (addressee, text) = options.message()?;
    let text = match text {
        "-" => read_input().map_err(SqlCommandError::Input)?,
        text => text.to_owned(),
    };
    let errand = SqlCommand {
        database: &options.database,
        what: "send notifications",
        group: "tidings_writer",
    };
    let (query, addressee) = match &addressee {
        Addressee::User(user) => (include_str!("../../sql/send.sql"), user.as_str()),
        Addressee::Topic(topic) => (include_str!("../../sql/send_to_topic.sql"), topic.as_str()),
    };
    let seconds = options.expires.map(|expires| expires.as_secs_f64());
    // The role may have no privilege but to execute the function.
    let parameters: [Parameter<'_>; 5] = [
        (&addressee, Type::TEXT),
        (&text, Type::TEXT),
        (&options.event, Type::TEXT),
        (&seconds, Type::FLOAT8),
        (&options.reference, Type::TEXT),
    ];
    let row = errand.run(query, &parameters).await?;
    Ok(row.try_get("id")?)
}

/// Creates a ticket and returns it. It can't be retrieved later.
pub async fn issue(options: &TicketOptions) -> Result<String, AnyError> {
    let errand = SqlCommand {
        database: &options.database,
        what: "create tickets",
        group: "tidings_issuer",
    };
    let seconds = Duration::as_secs_f64(&options.ttl);
    let user = options.user.as_ref().map(UserId::as_str);
    let topics: Vec<&str> = options.topics.iter().map(Topic::as_str).collect();
    let parameters: [Parameter<'_>; 3] = [
        (&user, Type::TEXT),
        (&seconds, Type::FLOAT8),
        (&topics, Type::TEXT_ARRAY),
    ];
    let row = errand
        .run(include_str!("../../sql/issue.sql"), &parameters)
        .await?;
    Ok(row.try_get("ticket")?)
}

impl SqlCommand<'_> {
    /// Works through a pooler too: the statement is unnamed and leaves nothing in the
    /// session.
    async fn run(&self, query: &str, parameters: &[Parameter<'_>]) -> Result<Row, AnyError> {
        let url: DatabaseUrl = self.database.url()?;
        let client = Borrowed::to_write(&url).await?;
        let query = self.database.schema.fill(query);
        match client.query_typed_one(&query, parameters).await {
            Ok(row) => Ok(row),
            Err(error) => Err(self.meaning(&client, error).await),
        }
    }

    async fn meaning(&self, client: &Borrowed, error: tokio_postgres::Error) -> AnyError {
        let reason = ErrorChain(&error).to_string();
        match error.code() {
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let query = include_str!("../../sql/quoted_role.sql");
                let role = client.query_typed_one(query, &[]).await;
                match role.and_then(|row| row.try_get(0)) {
                    Ok(role) => SqlCommandError::Denied {
                        role,
                        what: self.what,
                        group: self.group,
                        reason,
                    }
                    .into(),
                    Err(error) => error.into(),
                }
            }
            Some(
                &SqlState::UNDEFINED_FUNCTION
                | &SqlState::UNDEFINED_TABLE
                | &SqlState::INVALID_SCHEMA_NAME,
            ) => SqlCommandError::NoSchema {
                schema: self.database.schema.clone(),
                reason,
            }
            .into(),
            _ => error.into(),
        }
    }
}

/// Reads standard input, without the line break that `echo` adds at the end.
fn read_input() -> io::Result<String> {
    const NOT_UTF_8: &str =
        "it is not UTF-8: convert it, for example with iconv -f latin1 -t utf-8";
    let mut bytes = Vec::new();
    io::stdin().take(INPUT_BYTES).read_to_end(&mut bytes)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        // The input was truncated, and the database reports that it is too long.
        Err(error) if error.as_bytes().len() as u64 == INPUT_BYTES => {
            String::from_utf8_lossy(error.as_bytes()).into_owned()
        }
        Err(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, NOT_UTF_8)),
    };
    let shorter = text.strip_suffix('\n').map(str::to_owned);
    Ok(shorter.unwrap_or(text))
}
