//! Explains Postgres errors to the user of a command, and says what to do about them.

use std::error::Error;

use tokio_postgres::error::DbError;

use crate::{postgres::adoption::AdoptError, runtime::error_chain::is_row_security};

const TOPIC_FORM: &str = "the topic must be 1 to 255 bytes long, without control characters";

/// Our constraints by name, with what each requires.
const CONSTRAINTS: &[(&str, &str)] = &[
    ("notifications_id_positive", "ids start at 1"),
    (
        "notifications_user_id_length",
        "the user must be 1 to 255 bytes long",
    ),
    (
        "notifications_one_addressee",
        "a notification is either for a user or for a topic: give exactly one of them",
    ),
    ("notifications_topic_form", TOPIC_FORM),
    ("topic_subscriptions_topic_form", TOPIC_FORM),
    (
        "topic_subscriptions_user_id_length",
        "the user must be 1 to 255 bytes long",
    ),
    (
        "topic_subscriptions_not_everyone",
        "every user receives the topic *: it needs no subscription",
    ),
    (
        "notifications_text_length",
        "the text must be at most 1 MiB (1,048,576 bytes) long",
    ),
    (
        "notifications_event_length",
        "the event's name must be 1 to 100 bytes long",
    ),
    (
        "notifications_event_one_line",
        "the event's name must be one line",
    ),
    (
        "notifications_event_printable",
        "the event's name must not contain control characters, such as tabs and escape sequences",
    ),
    (
        "notifications_ref_length",
        "the ref must be at most 255 bytes long",
    ),
    (
        "notifications_event_not_reserved",
        "the event names open, error and those that begin with tidings. mean something else to \
         browsers: choose another name",
    ),
];

/// Explains the Postgres error behind `error`, if there is more to say than Postgres
/// does.
pub fn of(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // What is said here about names and privileges is about Tidings' own, not about those
        // of the application.
        match error.downcast_ref() {
            Some(AdoptError::Rejected { .. }) => return None,
            Some(AdoptError::Failed(error))
                if error
                    .code()
                    .is_some_and(|code| code.code().starts_with("42")) =>
            {
                return None;
            }
            _ => {}
        }
        if let Some(error) = error.downcast_ref::<DbError>() {
            return explain(error);
        }
        cause = error.source();
    }
    None
}

fn explain(error: &DbError) -> Option<String> {
    // `ErrorChain` says what to do about it.
    if is_row_security(error) {
        return None;
    }
    let code = error.code().code();
    let text = match code {
        "42501" => {
            "the role in DATABASE_URL lacks a privilege for this: `tidings check` lists what a \
             bridge's role lacks, with the statement that grants it, and docs/install.md lists the \
             privileges of each group that `tidings roles` creates"
        }
        "22021" | "22P05" => {
            "the text contains a byte that Postgres can't store as UTF-8, such as NUL: remove it \
             (tr -d '\\0'), or encode the text"
        }
        "42P01" | "42883" | "42703" | "3F000" => {
            "Tidings is not installed in this schema, or in another version: set TIDINGS_SCHEMA to \
             its schema, or run `tidings migrate`"
        }
        "25006" => {
            "the server is a standby, or the database is read-only \
             (default_transaction_read_only): point DATABASE_URL at the primary"
        }
        "28000" => {
            "the server doesn't let this role log in from here: check pg_hba.conf, and whether the \
             role exists and may log in"
        }
        "28P01" => "check the role and its password",
        "3D000" => "create the database, or correct its name in DATABASE_URL",
        "53100" => "free space on the server's disk",
        "53300" => {
            "raise max_connections or the role's connection limit, or close sessions (see \
             pg_stat_activity)"
        }
        "55P03" | "40P01" | "57014" => {
            "another session holds a lock, or the server is busy: try again; pg_stat_activity \
             shows the other sessions"
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
            "the constraint doesn't belong to Tidings: ask whoever added it to the table".to_owned()
        }
    }
}
