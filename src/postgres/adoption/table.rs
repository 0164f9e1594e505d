//! The table that a name on the command line means.

use tokio_postgres::{
    Client, Row,
    error::SqlState,
    types::{ToSql, Type},
};

use super::{AdoptError, names};
use crate::postgres::{
    connect::Queries,
    schema::{self, SchemaName, quoted},
};

/// A table whose rows a trigger can copy.
#[derive(Debug)]
pub(super) struct AdoptableTable {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) owner: String,
    /// The role of this session, and whether it can act as the owner.
    pub(super) role: String,
    pub(super) may_act: bool,
    /// Whether row-level security hides rows from the owner, too.
    pub(super) hides_rows: bool,
    /// The columns of the primary key, in its order.
    pub(super) key: Vec<String>,
    columns: Vec<TableColumn>,
}

#[derive(Debug)]
pub(super) struct TableColumn {
    pub(super) name: String,
    /// Without a length.
    pub(super) kind: String,
    pub(super) is_nullable: bool,
    pub(super) is_generated: bool,
}

impl AdoptableTable {
    /// The table as SQL names it.
    pub(super) fn shown(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// The column of a name as SQL writes it.
    pub(super) async fn column(
        &self,
        client: &Client,
        written: &str,
    ) -> Result<&TableColumn, AdoptError> {
        let [name]: [String; 1] = split(client, written)
            .await?
            .try_into()
            .map_err(|_| AdoptError::Name(written.to_owned()))?;
        if let Some(column) = self.columns.iter().find(|column| column.name == name) {
            return Ok(column);
        }
        let is_similar = |column: &&TableColumn| column.name.eq_ignore_ascii_case(written);
        Err(AdoptError::NoColumn {
            table: self.shown(),
            column: name,
            similar: self
                .columns
                .iter()
                .find(is_similar)
                .map(|column| quoted(&column.name)),
        })
    }

    /// A column of the primary key.
    pub(super) fn key_column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// Finds the table of a name as SQL writes it, and checks whether a trigger can copy its
/// rows.
///
/// # Errors
///
/// [`AdoptError`], with what to do.
pub(super) async fn find(
    client: &Client,
    tidings: &SchemaName,
    written: &str,
) -> Result<AdoptableTable, AdoptError> {
    let row = find_row(client, written).await?;
    let table = read(client, &row).await?;
    let kind: &str = row.try_get("kind")?;
    let is_ours =
        table.schema == tidings.name() && schema::names().any(|(_, name)| name == table.name);
    let what = match kind {
        _ if is_ours => "a table of Tidings".to_owned(),
        "r" | "p" => {
            if let Some(other) = row.try_get("taken_by")? {
                return Err(AdoptError::Taken {
                    table: table.shown(),
                    function: names::copy_function(&table.name),
                    other,
                });
            }
            return Ok(table);
        }
        "v" | "m" => "a view: adopt the table into which the application inserts".to_owned(),
        "f" => "a foreign table, whose rows other servers can insert without a trigger here: have \
                the application insert into notifications"
            .to_owned(),
        "partition" => format!(
            "a partition: adopt the whole table, {}",
            row.try_get::<_, Option<&str>>("root")?
                .unwrap_or("its parent")
        ),
        "temporary" => "a temporary table, which ends with its session".to_owned(),
        _ => "a table of Postgres".to_owned(),
    };
    Err(AdoptError::Unsuited {
        table: table.shown(),
        what,
    })
}

/// Finds the table of a name, even if its rows can't be copied.
pub(super) async fn find_any(client: &Client, written: &str) -> Result<AdoptableTable, AdoptError> {
    let row = find_row(client, written).await?;
    read(client, &row).await
}

/// Schema, if it was written, and name of a table.
pub(super) async fn parts(
    client: &Client,
    written: &str,
) -> Result<(Option<String>, String), AdoptError> {
    let mut parts = split(client, written).await?;
    match (parts.pop(), parts.pop(), parts.pop()) {
        (Some(name), schema, None) => Ok((schema, name)),
        _ => Err(AdoptError::Name(written.to_owned())),
    }
}

async fn find_row(client: &Client, written: &str) -> Result<Row, AdoptError> {
    let (schema, name) = parts(client, written).await?;
    let query = include_str!("../../../sql/adoptable_tables.sql");
    let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
        (&name, Type::TEXT),
        (&schema, Type::TEXT),
        (&names::copy_function(&name), Type::TEXT),
    ];
    let mut rows = client.query_typed(query, &parameters).await?;
    let mut elsewhere = Vec::new();
    if schema.is_none() {
        let path = search_path(client).await?;
        let qualified = |row: &Row| -> Result<String, AdoptError> {
            let (schema, name): (&str, &str) = (row.try_get("schema")?, row.try_get("name")?);
            Ok(format!("{}.{}", quoted(schema), quoted(name)))
        };
        elsewhere = rows.iter().map(qualified).collect::<Result<_, _>>()?;
        rows.retain(|row| {
            let schema = row.try_get::<_, String>("schema");
            schema.is_ok_and(|schema| path.contains(&schema))
        });
        if rows.len() > 1 {
            let found = rows.iter().map(qualified).collect::<Result<_, _>>()?;
            return Err(AdoptError::Ambiguous {
                name: quoted(&name),
                found,
            });
        }
    }
    let row = rows.pop().ok_or_else(|| AdoptError::NoTable {
        name: match &schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&name)),
            None => quoted(&name),
        },
        elsewhere,
    })?;
    if !row.try_get::<_, bool>("may_use")? {
        return Err(AdoptError::MayNotUse {
            schema: row.try_get("schema")?,
            role: row.try_get("role")?,
        });
    }
    Ok(row)
}

/// The table whose rows are now copied by the function of a table that is gone.
pub async fn copied_as(
    client: &impl Queries,
    tidings: &SchemaName,
    name: &str,
) -> Result<Option<String>, tokio_postgres::Error> {
    let query = tidings.fill(include_str!("../../../sql/copied_as.sql"));
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [
        (&names::copy_function(name), Type::TEXT),
        (&tidings.name(), Type::TEXT),
    ];
    let rows = client.query_typed(&query, &parameters).await?;
    rows.first().map(|row| row.try_get("table")).transpose()
}

async fn read(client: &Client, row: &Row) -> Result<AdoptableTable, AdoptError> {
    let oid: u32 = row.try_get("oid")?;
    let query = include_str!("../../../sql/adoptable_columns.sql");
    let rows = client.query_typed(query, &[(&oid, Type::OID)]).await?;
    let column = |row: &Row| {
        Ok(TableColumn {
            name: row.try_get("name")?,
            kind: row.try_get("type")?,
            is_nullable: row.try_get("is_nullable")?,
            is_generated: row.try_get("is_generated")?,
        })
    };
    let columns: Result<_, tokio_postgres::Error> = rows.iter().map(column).collect();
    Ok(AdoptableTable {
        schema: row.try_get("schema")?,
        name: row.try_get("name")?,
        owner: row.try_get("owner")?,
        role: row.try_get("role")?,
        may_act: row.try_get("may_act")?,
        hides_rows: row.try_get("hides_rows")?,
        key: row.try_get("key")?,
        columns: columns?,
    })
}

/// The parts of a name as SQL writes it.
async fn split(client: &Client, written: &str) -> Result<Vec<String>, AdoptError> {
    let query = include_str!("../../../sql/identifier.sql");
    match client
        .query_typed_one(query, &[(&written, Type::TEXT)])
        .await
    {
        Ok(row) => Ok(row.try_get("parts")?),
        Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => {
            Err(AdoptError::Name(written.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The schemas in which this role's sessions look for tables. Ours don't.
async fn search_path(client: &Client) -> Result<Vec<String>, AdoptError> {
    client.batch_execute("reset search_path").await?;
    let query = include_str!("../../../sql/search_path.sql");
    let row = client.query_typed_one(query, &[]).await?;
    client
        .batch_execute("set search_path = pg_catalog, pg_temp")
        .await?;
    Ok(row.try_get("path")?)
}
