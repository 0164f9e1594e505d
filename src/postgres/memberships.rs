//! Where memberships are read from: the built-in table, or a relation of the application.

use std::{fmt, str::FromStr};

use tokio_postgres::{error::SqlState, types::Type};

use crate::postgres::connect::{Borrowed, ConnectError, DatabaseUrl, Queries};

/// The name of a relation, as SQL writes it, with its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationName(String);

impl FromStr for RelationName {
    type Err = &'static str;

    /// Postgres resolves the name, so this only finds a schema that was left out.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_qualified = text
            .split_once('.')
            .is_some_and(|(schema, name)| !schema.is_empty() && !name.is_empty());
        match is_qualified && !text.contains('\0') {
            true => Ok(Self(text.to_owned())),
            false => Err("name the relation with its schema, such as app.memberships"),
        }
    }
}

impl fmt::Display for RelationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where memberships are read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MembershipSource {
    /// The table `topic_subscriptions`.
    #[default]
    BuiltIn,
    /// A relation of the application.
    Relation {
        /// Quoted, with its schema.
        name: String,
        user: UserKind,
    },
}

impl fmt::Display for MembershipSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("topic_subscriptions"),
            Self::Relation { name, .. } => f.write_str(name),
        }
    }
}

/// The type of the column `user_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserKind {
    Text,
    Integer,
    Uuid,
}

/// Why a relation can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error(
        "TIDINGS_MEMBERSHIPS: {0} is not the name of a relation with its schema, such as \
         app.memberships"
    )]
    Name(RelationName),
    #[error(
        "TIDINGS_MEMBERSHIPS: the relation {0} doesn't exist: create a view or a table with the \
         columns user_id, topic, and since (pg_snapshot)"
    )]
    Missing(RelationName),
    #[error("TIDINGS_MEMBERSHIPS: {role} may not read {relation}: {fix}")]
    Right {
        relation: String,
        role: String,
        fix: String,
    },
    #[error(
        "TIDINGS_MEMBERSHIPS: {relation} has no column {column} of type {expected}{}",
        .found.as_ref().map_or_else(String::new, |found| format!(" (its type is {found})"))
    )]
    Column {
        relation: String,
        column: &'static str,
        expected: &'static str,
        found: Option<String>,
    },
}

impl MembershipError {
    /// Whether retrying may help: the database can't be reached.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_passing(),
            Self::Postgres(error) => error.is_closed(),
            _ => false,
        }
    }
}

impl MembershipSource {
    /// Finds the relation of this name, or else the built-in table, and checks its columns.
    ///
    /// # Errors
    ///
    /// [`MembershipError`] if the relation can't be used.
    pub async fn find(
        url: &DatabaseUrl,
        name: Option<&RelationName>,
    ) -> Result<Self, MembershipError> {
        match name {
            None => Ok(Self::BuiltIn),
            Some(name) => Self::examine(&Borrowed::to_read(url).await?, name).await,
        }
    }

    /// The same for a relation, in an open session.
    pub async fn examine(client: &Borrowed, name: &RelationName) -> Result<Self, MembershipError> {
        let query = include_str!("../../sql/membership_relation.sql");
        let found = client.query_typed(query, &[(&name.0, Type::TEXT)]).await;
        let found = match found {
            Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => {
                return Err(MembershipError::Name(name.clone()));
            }
            found => found?,
        };
        let Some(row) = found.first() else {
            return Err(MembershipError::Name(name.clone()));
        };
        let Some(may_read) = row.try_get::<_, Option<bool>>("may_read")? else {
            return Err(MembershipError::Missing(name.clone()));
        };
        let relation: String = row.try_get("relation")?;
        if !may_read {
            let (role, fix) = (row.try_get("role")?, row.try_get("fix")?);
            return Err(MembershipError::Right {
                relation,
                role,
                fix,
            });
        }
        let kind = |column: &'static str| row.try_get::<_, Option<String>>(column);
        let (user, topic, since) = (kind("user_id")?, kind("topic")?, kind("since")?);
        let unfit = |column, expected, found| MembershipError::Column {
            relation: relation.clone(),
            column,
            expected,
            found,
        };
        let user = match user.as_deref() {
            Some("text" | "character varying") => UserKind::Text,
            Some("smallint" | "integer" | "bigint") => UserKind::Integer,
            Some("uuid") => UserKind::Uuid,
            _ => {
                let expected = "text, varchar, integer, bigint or uuid";
                return Err(unfit("user_id", expected, user));
            }
        };
        if !matches!(topic.as_deref(), Some("text" | "character varying")) {
            return Err(unfit("topic", "text or varchar", topic));
        }
        if since.as_deref() != Some("pg_snapshot") {
            let expected = "pg_snapshot: null::pg_snapshot as since, if it isn't known";
            return Err(unfit("since", expected, since));
        }
        let name = relation;
        Ok(Self::Relation { name, user })
    }

    pub fn is_built_in(&self) -> bool {
        *self == Self::BuiltIn
    }

    /// The query for the memberships of a user. The arguments are SQL: the user as text, the
    /// maximum number of topics, and an array of the topics that the client asked for.
    pub fn query(&self, user: &str, most: &str, asked: &str) -> String {
        let fill = |query: &str| {
            query
                .replace(":member", user)
                .replace(":most", most)
                .replace(":asked", asked)
        };
        match self {
            Self::BuiltIn => fill(include_str!("../../sql/memberships.sql")),
            Self::Relation { name, user } => {
                let query = include_str!("../../sql/memberships_of_relation.sql");
                fill(&query.replace(":own_user", user.as_own())).replace(":relation", name)
            }
        }
    }

    /// The query for what has changed.
    pub(super) fn changes(&self) -> &'static str {
        match self {
            Self::BuiltIn => include_str!("../../sql/membership_changes.sql"),
            Self::Relation { .. } => {
                include_str!("../../sql/membership_changes_of_relation.sql")
            }
        }
    }
}

impl UserKind {
    fn as_own(self) -> &'static str {
        match self {
            Self::Text => ":member",
            Self::Integer => include_str!("../../sql/user_as_bigint.sql"),
            Self::Uuid => include_str!("../../sql/user_as_uuid.sql"),
        }
    }
}
