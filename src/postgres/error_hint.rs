//! Explains Postgres errors to the user of a command, and says what to do about them.

use std::error::Error;

use tokio_postgres::error::DbError;

/// Our constraints by name, with what each requires.
const CONSTRAINTS: &[(&str, &str)] = &[
    ("notifications_id_positive", "ids begin at 1"),
    (
        "notifications_user_id_length",
        "a user is a text of 1 to 255 bytes",
    ),
    (
        "notifications_text_length",
        "a text has at most 1 MiB (1,048,576 bytes)",
    ),
    (
        "notifications_event_length",
        "the name of an event has 1 to 100 bytes",
    ),
    (
        "notifications_event_one_line",
        "the name of an event is one line",
    ),
    (
        "notifications_event_printable",
        "the name of an event holds no control characters, such as tabs and escape sequences",
    ),
    (
        "notifications_event_not_reserved",
        "the names open, error and those that begin with tidings. mean something else to browsers: \
         choose another one for the event",
    ),
];

/// Explains the Postgres error behind `error`, if there is more to say than Postgres
/// does.
pub fn of(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<DbError>() {
            return explain(error);
        }
        cause = error.source();
    }
    None
}

fn explain(error: &DbError) -> Option<String> {
    let code = error.code().code();
    let text = match code {
        "42501" => {
            "the role that DATABASE_URL names has no right to do this: `tidings check` lists what a \
             bridge's role lacks, with the statement that grants it, and docs/install.md has the \
             rights of each group of sql/roles.sql"
        }
        "22021" | "22P05" => {
            "the text has a byte that Postgres can't store as UTF-8, such as NUL: remove it (tr -d \
             '\\0'), or encode the text"
        }
        "42P01" | "42883" | "42703" | "3F000" => {
            "the schema holds no Tidings, or one of another version: set TIDINGS_SCHEMA to the \
             schema that it is in, or run `tidings migrate`"
        }
        "25006" => {
            "the server is a standby, or the database is set to be read only \
             (default_transaction_read_only): let DATABASE_URL lead to the primary"
        }
        "28000" => {
            "the server lets this role not in from here: check pg_hba.conf, and whether the role \
             exists and may log in"
        }
        "28P01" => "check the role and its password",
        "3D000" => "create the database, or correct its name in DATABASE_URL",
        "53100" => "make room on the server's disk",
        "53300" => {
            "raise max_connections or the role's connection limit, or close sessions: SQL shows \
             them in pg_stat_activity"
        }
        "55P03" | "40P01" | "57014" => {
            "another session holds a lock, or the server is busy: try again; pg_stat_activity shows \
             what it does"
        }
        class if class.starts_with("23") => return Some(constraint(error)),
        _ => return None,
    };
    Some(text.to_owned())
}

fn constraint(error: &DbError) -> String {
    let name = error.constraint().unwrap_or_default();
    let own = CONSTRAINTS.iter().find(|(own, _)| *own == name);
    match own {
        Some((_, meaning)) => (*meaning).to_owned(),
        None => {
            "the constraint is none of Tidings' own: ask whoever added it to the table".to_owned()
        }
    }
}
