//! Whether the bridge sees every row of its tables.
//!
//! Where row-level security applies to the bridge's role, Postgres would leave rows
//! out without an error. All sessions therefore set `row_security = off`, with which
//! it refuses the query instead; and what else can stand between a role and the rows
//! of a table is looked for in the catalogs.

use std::fmt;

use tokio_postgres::{Error, Row, types::Type};

use crate::postgres::{connect::Queries, schema::SchemaName};

/// Whose view of the tables is examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// This session's role.
    Session,
    /// The roles of all bridges: members of `tidings_bridge`, and this session's.
    Bridges,
}

/// What hides rows, or keeps the bridge from noticing that they are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Row-level security applies to the bridge or to the owner of the functions.
    RowSecurity,
    /// A view, or another kind of relation, bears the name of a table.
    Relation,
    /// The table that a crash must empty is kept by a crash.
    Logged,
    /// A rule rewrites what is written to `notifications`.
    Rule,
}

/// Something that hides rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// How.
    pub kind: Kind,
    /// The table's plain name.
    pub relation: String,
    /// The same with its schema, as SQL wants it.
    pub table: String,
    /// The roles that are affected, the kind of relation, or the name of the rule.
    pub what: Option<String>,
    /// The statement that ends it, if there is one that fits every case.
    pub cure: Option<String>,
}

/// What hides rows in this schema.
///
/// # Errors
///
/// What Postgres answers.
pub async fn examine(
    client: &impl Queries,
    schema: &SchemaName,
    readers: Readers,
) -> Result<Vec<Hidden>, Error> {
    let of_all = readers == Readers::Bridges;
    let query = include_str!("../../sql/visibility.sql");
    let parameters = [
        (&schema.name() as _, Type::TEXT),
        (&of_all as _, Type::BOOL),
    ];
    let rows = client.query_typed(query, &parameters).await?;
    rows.iter().map(Hidden::read).collect()
}

impl Hidden {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            kind: match row.try_get("kind")? {
                "row-security" => Kind::RowSecurity,
                "relation" => Kind::Relation,
                "logged" => Kind::Logged,
                _ => Kind::Rule,
            },
            relation: row.try_get("relation")?,
            table: row.try_get("table")?,
            what: row.try_get("affected")?,
            cure: row.try_get("cure")?,
        })
    }

    /// Whether the bridge can't deliver all rows, or can't tell that it does.
    pub fn stops_delivery(&self) -> bool {
        self.kind != Kind::Rule
    }

    /// What is so.
    pub fn found(&self) -> String {
        let table = &self.table;
        let what = self.what.as_deref().unwrap_or_default();
        match self.kind {
            Kind::RowSecurity => {
                format!("row-level security on {table} applies to {what} and hides its rows")
            }
            Kind::Relation => {
                format!("{table} is {what}, and not the table that migrations made")
            }
            Kind::Logged => {
                format!("{table} is not UNLOGGED, so a crash of Postgres is not noticed")
            }
            Kind::Rule => format!("the rule {what} on {table} changes what is written to it"),
        }
    }

    /// What to do.
    pub fn advice(&self) -> String {
        let cure = self.cure.as_deref().unwrap_or_default();
        match self.kind {
            // A policy is no way out: the bridge can't know that it lets all rows pass.
            Kind::RowSecurity => format!(
                "`{cure}` and control access by GRANT, or keep it for other roles and exempt these \
                 (`alter role … bypassrls`); a policy doesn't help, because the bridge refuses to \
                 read through policies"
            ),
            Kind::Relation if self.cure.is_none() => {
                "rename it, and give the table its name back".to_owned()
            }
            Kind::Relation | Kind::Logged | Kind::Rule => format!("`{cure}`"),
        }
    }
}

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found(), self.advice())
    }
}
