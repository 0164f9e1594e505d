//! Checks whether the bridge sees every row of its tables.
//!
//! If row-level security applied to the bridge's role, Postgres would omit rows without
//! an error. Therefore all sessions set `row_security = off`, which makes Postgres reject
//! the query instead. Everything else that can hide a table's rows from a role is looked
//! up in the catalogs.

use std::fmt;

use tokio_postgres::{Error, Row, types::Type};

use crate::postgres::{connect::Queries, schema::SchemaName};

/// The roles to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// This session's role.
    Session,
    /// The roles of all bridges: members of `tidings_bridge`, and this session's role.
    Bridges,
}

/// What hides rows, or keeps the bridge from noticing that rows are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Row-level security applies to the bridge or to the owner of the functions.
    RowSecurity,
    /// A view, or another kind of relation, has the name of a table.
    Relation,
    /// `tidings_incarnation` isn't UNLOGGED, so a crash doesn't empty it.
    Logged,
    /// A rule rewrites what is written to `notifications`.
    Rule,
}

/// Something that hides rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HiddenRows {
    pub kind: Obstacle,
    /// The table's unqualified name.
    pub relation: String,
    /// The table's name with its schema, quoted for SQL.
    pub table: String,
    /// The affected roles, the kind of relation, or the name of the rule.
    pub what: Option<String>,
    /// The statement that fixes it, if one statement fits every case.
    pub fix: Option<String>,
}

/// Returns what hides rows in this schema.
pub async fn examine(
    client: &impl Queries,
    schema: &SchemaName,
    readers: Readers,
) -> Result<Vec<HiddenRows>, Error> {
    let of_all = readers == Readers::Bridges;
    let query = include_str!("../../sql/visibility.sql");
    let parameters = [
        (&schema.name() as _, Type::TEXT),
        (&of_all as _, Type::BOOL),
    ];
    let rows = client.query_typed(query, &parameters).await?;
    rows.iter().map(HiddenRows::read).collect()
}

impl HiddenRows {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            kind: match row.try_get("kind")? {
                "row-security" => Obstacle::RowSecurity,
                "relation" => Obstacle::Relation,
                "logged" => Obstacle::Logged,
                _ => Obstacle::Rule,
            },
            relation: row.try_get("relation")?,
            table: row.try_get("table")?,
            what: row.try_get("affected")?,
            fix: row.try_get("fix")?,
        })
    }

    /// Whether the bridge can't deliver all rows, or can't know that it does.
    pub fn stops_delivery(&self) -> bool {
        self.kind != Obstacle::Rule
    }

    /// The problem, in words.
    pub fn found(&self) -> String {
        let table = &self.table;
        let what = self.what.as_deref().unwrap_or_default();
        match self.kind {
            Obstacle::RowSecurity => {
                format!("row-level security on {table} applies to {what} and hides its rows")
            }
            Obstacle::Relation => {
                format!("{table} is {what}, not the table that migrations created")
            }
            Obstacle::Logged => {
                format!("{table} is not UNLOGGED, so a crash of Postgres is not noticed")
            }
            Obstacle::Rule => format!("the rule {what} on {table} changes what is written to it"),
        }
    }

    /// How to fix it.
    pub fn advice(&self) -> String {
        let fix = self.fix.as_deref().unwrap_or_default();
        match self.kind {
            // A policy isn't a solution: the bridge can't know that it lets all rows
            // pass.
            Obstacle::RowSecurity => format!(
                "`{fix}` and control access by GRANT, or keep it for other roles and exempt these \
                 (`alter role … bypassrls`); a policy doesn't help, because the bridge refuses to \
                 read through policies"
            ),
            Obstacle::Relation if self.fix.is_none() => {
                "rename it, and give the table its name back".to_owned()
            }
            Obstacle::Relation | Obstacle::Logged | Obstacle::Rule => format!("`{fix}`"),
        }
    }
}

impl fmt::Display for HiddenRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found(), self.advice())
    }
}
