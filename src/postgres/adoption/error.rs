//! Why a table can't be adopted.

use std::{fmt, time::Duration};

use tokio_postgres::error::SqlState;

use crate::postgres::{
    connect::ConnectError,
    schema::{SchemaName, quoted},
};

/// Why a table can't be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed that should not.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error(
        "Tidings is not installed in the schema {0}, or is too old: run `tidings migrate`, or set \
         TIDINGS_SCHEMA to its schema"
    )]
    NotInstalled(SchemaName),
    /// The name is not one of SQL.
    #[error(
        "{0} is not a name as SQL writes it: put a name with capitals, spaces or other special \
         characters in double quotes, and those in quotes for the shell, as in '\"My Table\"' or \
         'app.\"My Table\"'"
    )]
    Name(String),
    #[error("there is no table {name}{}", hint(.elsewhere))]
    NoTable {
        name: String,
        /// Tables of that name that are not on the search path.
        elsewhere: Vec<String>,
    },
    #[error("there are several tables {name} on the search path: write one of {}", .found.join(", "))]
    Ambiguous { name: String, found: Vec<String> },
    /// A trigger can't copy its rows.
    #[error("{table} is {what}")]
    Unsuited { table: String, what: String },
    #[error("{table} has no column {column}{}", similar.as_ref().map_or_else(String::new, |similar| {
        format!(": write {similar}, in quotes for the shell")
    }))]
    NoColumn {
        table: String,
        column: String,
        /// A column whose name differs in its capitals, in double quotes.
        similar: Option<String>,
    },
    #[error(
        "{0} has no primary key to make refs of: pass --ref with an expression that identifies a \
         row, such as --ref \"'orders:' || code\", or add a primary key"
    )]
    NoKey(String),
    #[error(
        "--mark finds the rows of {0} by a primary key of one column, and {0} has none: leave out \
         --mark, and read the column sent_at of notifications"
    )]
    MarkKey(String),
    #[error(
        "{column} has the type {found}: --mark needs a column of the type boolean, timestamp or \
         timestamp with time zone that is not generated"
    )]
    MarkColumn { column: String, found: String },
    /// Postgres doesn't accept an expression.
    #[error("{option} can't be used{advice}")]
    Rejected {
        option: ExpressionOption,
        advice: &'static str,
        source: tokio_postgres::Error,
    },
    #[error(
        "the function {function}, which would copy the rows of {table}, is executed by the trigger \
         of {other}, which may have had this name before: repeat the `tidings adopt` of {other}, \
         or end its copying with `tidings adopt --remove`"
    )]
    Taken {
        table: String,
        function: String,
        other: String,
    },
    #[error(
        "{table} is now called {now}: repeat its `tidings adopt` under this name, or end the \
         copying with `tidings adopt --remove`; then remove {table}"
    )]
    Renamed { table: String, now: String },
    #[error(
        "row-level security is forced on {0}, so the function that marks rows, which runs as the \
         table's owner, would not see them: run alter table {0} no force row level security; or \
         leave out --mark"
    )]
    HidesRows(String),
    #[error(
        "{role} may not use the schema {schema}: run this as a superuser, or have a DBA run: grant \
         usage on schema {} to {};",
        quoted(schema),
        quoted(role)
    )]
    MayNotUse { schema: String, role: String },
    #[error(
        "the trigger's function belongs to {owner} and is created in the schema {schema}, where \
         this may not create anything: run this as a superuser, or have a DBA run: grant create on \
         schema {} to {};",
        quoted(schema),
        quoted(owner)
    )]
    MayNotCreate { schema: String, owner: String },
    #[error(
        "{table} belongs to {owner}, and {role} can't act as {owner}: run this as {owner} or a \
         superuser"
    )]
    NotOwner {
        table: String,
        owner: String,
        role: String,
    },
    #[error(
        "{owner}, who owns the table, may not insert notifications, so no row could be inserted \
         into the table: have a DBA run: {grant}"
    )]
    MayNotInsert {
        owner: String,
        /// The statement that allows it.
        grant: String,
    },
    #[error("{role} may not adopt tables: have a DBA run: {grant}")]
    MayNotRegister {
        role: String,
        /// The statement that allows it.
        grant: String,
    },
    #[error(
        "only a role that can act as {owner} may use --mark, because Tidings then calls a function \
         that belongs to the owner of the table: run this as a superuser, or print it (without \
         --apply) and give it to a DBA, or have a DBA run: grant {} to {}; ({role} could then do \
         anything with Tidings)",
        quoted(owner),
        quoted(role)
    )]
    MayNotMark {
        role: String,
        /// The owner of Tidings' objects.
        owner: String,
    },
    #[error("nothing was changed: other sessions used {table} for {} s", limit.as_secs())]
    InUse {
        table: String,
        /// How long it was tried.
        limit: Duration,
        source: tokio_postgres::Error,
    },
    #[error("nothing was changed")]
    Failed(#[source] tokio_postgres::Error),
}

/// What an expression is for: the option that it was passed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpressionOption {
    Text,
    Event,
    Ref,
    Where,
    Existing,
}

impl fmt::Display for ExpressionOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "--text",
            Self::Event => "--event",
            Self::Ref => "--ref",
            Self::Where => "--where",
            Self::Existing => "--existing",
        })
    }
}

fn hint(elsewhere: &[String]) -> String {
    match elsewhere {
        [] => String::new(),
        _ => format!(" on the search path: write {}", elsewhere.join(" or ")),
    }
}

impl AdoptError {
    pub(super) fn rejected(option: ExpressionOption, source: tokio_postgres::Error) -> Self {
        let own = [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_OBJECT,
            SqlState::AMBIGUOUS_FUNCTION,
        ];
        let by_position = [
            SqlState::GROUPING_ERROR,
            SqlState::WINDOWING_ERROR,
            SqlState::FEATURE_NOT_SUPPORTED,
        ];
        let is_any_of = |codes: &[SqlState]| source.code().is_some_and(|code| codes.contains(code));
        let advice = if is_any_of(&own) {
            " (the row is called n; functions, operators, tables and types that are not part of \
             Postgres need their schema, as in app.render(n.payload))"
        } else if is_any_of(&by_position) {
            " (it must be an expression over the columns of one row, n)"
        } else {
            ""
        };
        Self::Rejected {
            option,
            advice,
            source,
        }
    }
}
