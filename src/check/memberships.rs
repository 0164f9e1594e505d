//! Whether memberships can be read quickly, and whether bridges learn of their changes.

use serde_json::Value;
use tokio_postgres::{
    Row,
    types::{FromSql, Type},
};

use super::finding::{Finding, Fix, Subject};
use crate::{
    postgres::{
        connect::{self, Borrowed, DatabaseUrl, Queries, Scope},
        memberships::{MembershipError, MembershipSource, RelationName, UserKind},
        schema::{SchemaError, SchemaName, quoted},
    },
    runtime::error_chain::ErrorChain,
};

const USABLE: &str = "a table or view with the columns user_id (text, a number or uuid), topic \
                      (text) and since (pg_snapshot, may be null), which the bridge's role may \
                      read";
const INDEXED: &str = "an index on the user: each connection reads its user's memberships, and \
                       without an index Postgres reads everyone's each time";
const ANNOUNCED: &str = "triggers that tell bridges whose memberships have changed; otherwise an \
                         open stream learns of it only if the application calls \
                         tidings_memberships_changed()";
const WATCHED: &str = "all four triggers, enabled always: without one of them, users keep or miss \
                       topics that the table says otherwise about";

/// Tables with at most this many rows are read in a few milliseconds without an index.
const SMALL_TABLE: i64 = 5_000;

/// Tables that are watched only in part.
pub(super) async fn half_watched(
    client: &Borrowed,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../../sql/watched_tables.sql");
    let rows = client
        .query_typed(query, &[(&schema.name(), Type::TEXT)])
        .await?;
    let finding = |row: &Row| {
        let (table, fix): (String, String) = (row.try_get("table")?, row.try_get("fix")?);
        let missing: Vec<String> = row.try_get("missing")?;
        let plural = if missing.len() == 1 { "" } else { "s" };
        let found = format!(
            "the trigger{plural} {} on {table} can't fire in every session: missing, disabled or \
             not ENABLE ALWAYS",
            missing.join(", ")
        );
        let fix = Fix::Sql(fix);
        Ok(Finding::wrong(Subject::Memberships, found, WATCHED, fix))
    };
    rows.iter().map(finding).collect()
}

/// What is wrong with the relation that `TIDINGS_MEMBERSHIPS` names, for the role of this
/// URL.
pub(super) async fn relation(
    url: &DatabaseUrl,
    name: &RelationName,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let settings = connect::settings(Scope::Transaction);
    let client = Borrowed::to_read_with(url, &settings).await?;
    let source = match MembershipSource::examine(&client, name).await {
        Ok(source) => source,
        Err(MembershipError::Connect(error)) => return Err(error.into()),
        Err(MembershipError::Postgres(error)) => return Err(error.into()),
        Err(error) => {
            let fix = match &error {
                MembershipError::Right { fix, .. } => Fix::Sql(fix.clone()),
                _ => Fix::Advice("correct TIDINGS_MEMBERSHIPS, or the relation".to_owned()),
            };
            let found = error.to_string();
            return Ok(vec![Finding::wrong(
                Subject::Memberships,
                found,
                USABLE,
                fix,
            )]);
        }
    };
    let MembershipSource::Relation { name, user } = &source else {
        return Ok(Vec::new());
    };
    let mut findings = slow_scans(&client, &source, *user, schema).await?;
    findings.extend(unannounced(&client, name, schema).await?);
    Ok(findings)
}

async fn unannounced(
    client: &Borrowed,
    relation: &str,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    let query = include_str!("../../sql/unwatched_tables.sql");
    let parameters = [
        (&schema.name() as _, Type::TEXT),
        (&relation as _, Type::TEXT),
    ];
    let rows = client.query_typed(query, &parameters).await?;
    let finding = |row: &Row| {
        let table: String = row.try_get("table")?;
        let fix = match row.try_get("fix")? {
            Some(fix) => Fix::Sql(fix),
            None => Fix::Advice(format!(
                "select {}.tidings_watch('{table}', …) with the column that names the user",
                schema.quoted()
            )),
        };
        let found =
            format!("no trigger tells bridges when {table} changes, which {relation} reads");
        Ok(Finding::hint(Subject::Memberships, found, ANNOUNCED, fix))
    };
    rows.iter().map(finding).collect()
}

/// Large tables that the query for one user's memberships reads from beginning to end.
async fn slow_scans(
    client: &Borrowed,
    source: &MembershipSource,
    kind: UserKind,
    schema: &SchemaName,
) -> Result<Vec<Finding>, SchemaError> {
    // A user of this type that hardly exists.
    let user = match kind {
        UserKind::Integer => "0",
        UserKind::Text | UserKind::Uuid => "00000000-0000-4000-8000-000000000000",
    };
    let query = source.query("$1", "1001", "null::text[]");
    let explain = format!("explain (verbose, format json) {query}");
    let row = match client
        .query_typed_one(&schema.fill(&explain), &[(&user, Type::TEXT)])
        .await
    {
        Err(error) if error.as_db_error().is_some() => {
            return Ok(vec![Finding::wrong(
                Subject::Memberships,
                format!(
                    "memberships can't be read from {source}: {}",
                    ErrorChain(&error)
                ),
                USABLE,
                Fix::Advice("correct the relation, or its privileges".to_owned()),
            )]);
        }
        row => row?,
    };
    let Plan(plan) = row.try_get(0)?;
    let mut scans = Vec::new();
    collect_scans(&plan[0]["Plan"], &mut scans);
    let mut findings = Vec::new();
    for scan in scans {
        let names = [
            (&scan.schema as _, Type::TEXT),
            (&scan.table as _, Type::TEXT),
            (&scan.index as _, Type::TEXT),
        ];
        let query = include_str!("../../sql/estimated_rows.sql");
        let rows = client.query_typed(query, &names).await?;
        let Some(row) = rows.first() else {
            continue;
        };
        if row.try_get::<_, i64>("rows")? > SMALL_TABLE && scan.reads_all(row.try_get("leading")?) {
            findings.push(scan.finding(source, user));
        }
    }
    Ok(findings)
}

/// A plan in JSON, which Postgres sends as a type of its own.
struct Plan(Value);

impl<'a> FromSql<'a> for Plan {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(serde_json::from_slice(raw)?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSON
    }
}

/// A node of a plan that reads a table, or an index of it.
struct TableScan {
    schema: String,
    table: String,
    index: Option<String>,
    /// What the index is searched for.
    searched: Option<String>,
    /// What each row is compared with.
    filter: Option<String>,
}

fn collect_scans(node: &Value, found: &mut Vec<TableScan>) {
    let text = |key: &str| node[key].as_str().map(str::to_owned);
    if let (Some(schema), Some(table)) = (text("Schema"), text("Relation Name")) {
        found.push(TableScan {
            schema,
            table,
            index: text("Index Name"),
            searched: text("Index Cond"),
            filter: text("Filter"),
        });
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        collect_scans(child, found);
    }
}

impl TableScan {
    /// Whether it reads the table, or an index, from beginning to end: no index is searched,
    /// or not by what it is ordered by first. With the settings of a bridge, Postgres does
    /// that only where there is no other way.
    fn reads_all(&self, leading: Option<&str>) -> bool {
        match (&self.searched, leading) {
            (Some(searched), Some(leading)) => !searched.contains(leading),
            (Some(_), None) => false,
            (None, _) => true,
        }
    }

    fn finding(self, source: &MembershipSource, user: &str) -> Finding {
        let fix = match self.compared(user) {
            Some(column) => Fix::Sql(format!(
                "create index concurrently on {} ({column});",
                self.name()
            )),
            None => Fix::Advice(format!(
                "create an index on the columns of {} by which it is searched for a user, and \
                 leave the user's column in its own type in {source}: a cast keeps Postgres from \
                 using its index",
                self.name()
            )),
        };
        let found = format!(
            "to find the memberships of one user in {source}, Postgres reads all of {}{}",
            self.name(),
            match self.condition() {
                None => String::new(),
                Some(condition) => format!(", and compares each row: {condition}"),
            }
        );
        Finding::wrong(Subject::Memberships, found, INDEXED, fix)
    }

    fn name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.table))
    }

    fn condition(&self) -> Option<&str> {
        self.searched.as_deref().or(self.filter.as_deref())
    }

    /// The column that is compared with the user, if it is one.
    fn compared(&self, user: &str) -> Option<&str> {
        let conditions = self.condition()?.split(" AND ");
        let mut of_user = conditions.filter(|condition| condition.contains(&format!("'{user}'")));
        let (column, _) = of_user.next()?.split_once(" = ")?;
        let column = column.trim_start_matches('(').rsplit('.').next()?;
        (!column.contains(['(', ')', ':'])).then_some(column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(searched: Option<&str>, filter: Option<&str>) -> TableScan {
        TableScan {
            schema: "app".to_owned(),
            table: "members".to_owned(),
            index: None,
            searched: searched.map(str::to_owned),
            filter: filter.map(str::to_owned),
        }
    }

    #[test]
    fn the_column_of_a_condition_is_named_and_no_other_expression() {
        for (filter, column) in [
            ("(m.user_id = '0'::bigint)", Some("user_id")),
            (
                "((m.topic IS NOT NULL) AND (m.\"the user\" = '0'::bigint))",
                Some("\"the user\""),
            ),
            ("((m.user_id)::text = '0'::text)", None),
            ("(lower(m.user_id) = '0'::text)", None),
            ("(m.topic = 'x'::text)", None),
        ] {
            assert_eq!(scan(None, Some(filter)).compared("0"), column, "{filter}");
        }
        assert_eq!(scan(None, None).compared("0"), None);
    }

    #[test]
    fn an_index_helps_if_it_is_ordered_by_what_is_searched_for() {
        let searched = Some("(m.user_id = '0'::bigint)");
        assert!(!scan(searched, None).reads_all(Some("user_id")));
        assert!(scan(searched, None).reads_all(Some("project_id")));
        assert!(scan(None, searched).reads_all(None));
        assert!(scan(None, None).reads_all(Some("user_id")));
    }
}
