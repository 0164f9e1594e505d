//! `tidings adopt`: a trigger on an application's table that copies each new row into
//! notifications, in the same transaction.
//!
//! All of it is SQL that the application can keep in its own migrations (`script.rs`). It
//! belongs to the owner of the table, so that no role gains a privilege by it: a role that may
//! insert into the table may go on, and the owner must be a writer of Tidings. What people
//! write, names (`quoted`) and expressions (`expression.rs`), can't become anything else.

mod error;
mod expression;
mod names;
mod script;
mod table;

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{
    Client,
    error::SqlState,
    types::{ToSql, Type},
};

pub use self::{
    error::{AdoptError, ExpressionOption},
    expression::{Expression, ExpressionError},
    script::{Script, copied_rows},
    table::copied_as,
};
use self::{
    script::{Copying, Marking},
    table::AdoptableTable,
};
use crate::postgres::{
    connect::{self, DatabaseUrl, Driver},
    schema::{LOCK_PAUSE, SchemaName, quoted},
};

/// What to copy from which table, as the command line says it. Names are written as in
/// SQL.
#[derive(Clone, Copy, Debug)]
pub struct AdoptionRequest<'a> {
    pub table: &'a str,
    /// The column that contains the user.
    pub user: &'a str,
    pub text: &'a Expression,
    pub event: Option<&'a Expression>,
    /// By default, the refs are made from the primary key.
    pub reference: Option<&'a Expression>,
    /// Which rows are copied; by default all.
    pub condition: Option<&'a Expression>,
    /// The column that is set once a row was sent.
    pub mark: Option<&'a str>,
    /// Which of the existing rows are copied; by default none.
    pub existing: Option<&'a Expression>,
}

/// Adopts tables, as the role that a URL names.
pub struct Adopter<'a> {
    client: Client,
    _driver: Driver,
    schema: &'a SchemaName,
}

/// What a role may do, and what Tidings looks like where it is installed.
struct Rights {
    tidings_owner: String,
    has_group: bool,
    may_insert: bool,
    may_create: bool,
    may_grant: bool,
    may_register: bool,
    may_mark: bool,
    may_reach: bool,
    role: String,
    replaces_triggers: bool,
}

impl<'a> Adopter<'a> {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`AdoptError::Connect`].
    pub async fn open(url: &DatabaseUrl, schema: &'a SchemaName) -> Result<Self, AdoptError> {
        let (client, driver) = connect::connect_pinned(url).await?;
        Ok(Self {
            client,
            _driver: driver,
            schema,
        })
    }

    /// Returns the SQL that has the rows of a table copied. Only reads.
    ///
    /// # Errors
    ///
    /// [`AdoptError`], if the table, a column or an expression isn't suitable.
    pub async fn adopt(&self, request: AdoptionRequest<'_>) -> Result<Script, AdoptError> {
        let (client, schema) = (&self.client, self.schema);
        let table = table::find(client, schema, request.table).await?;
        let rights = self.rights(&table).await?;
        let user = table.column(client, request.user).await?;
        let marking = match request.mark {
            Some(mark) => Some(Marking::of(
                &table,
                table.column(client, mark).await?,
                &rights.tidings_owner,
                rights.may_reach,
            )?),
            None => None,
        };
        if request.reference.is_none() && table.key.is_empty() {
            return Err(AdoptError::NoKey(table.shown()));
        }
        if marking.is_some() && table.hides_rows {
            return Err(AdoptError::HidesRows(table.shown()));
        }
        let copying = Copying {
            schema,
            table: &table,
            replaces_triggers: rights.replaces_triggers,
            user,
            text: request.text,
            event: request.event,
            reference: request.reference,
            prefix: self.prefix(&table).await?,
            condition: request.condition,
            existing: request.existing,
        };
        // Nothing is read: row-level security, which our sessions reject, doesn't matter.
        client.batch_execute("set row_security = on").await?;
        for (option, expression) in [
            (ExpressionOption::Text, Some(request.text)),
            (ExpressionOption::Event, request.event),
            (ExpressionOption::Ref, request.reference),
        ] {
            if let Some(expression) = expression {
                let query = copying.value_query(expression);
                self.try_out(option, &query).await?;
            }
        }
        for (option, condition) in [
            (ExpressionOption::Where, request.condition),
            (ExpressionOption::Existing, request.existing),
        ] {
            if let Some(condition) = condition {
                self.try_out(option, &copying.condition_query(condition))
                    .await?;
            }
        }
        // What the parts mean together is known: anything else is our mistake.
        self.client.prepare(&copying.query()).await?;
        client.batch_execute("set row_security = off").await?;
        let grant = match rights.may_insert {
            true => None,
            false => Some(grant(schema, &table.owner, rights.has_group)),
        };
        let denial = if !table.may_act {
            Some(AdoptError::NotOwner {
                table: table.shown(),
                owner: table.owner.clone(),
                role: table.role.clone(),
            })
        } else if !rights.may_create {
            Some(AdoptError::MayNotCreate {
                schema: table.schema.clone(),
                owner: table.owner.clone(),
            })
        } else if let Some(grant) = grant.as_ref().filter(|_| !rights.may_grant) {
            Some(AdoptError::MayNotInsert {
                owner: table.owner.clone(),
                grant: grant.clone(),
            })
        } else if !rights.may_register {
            Some(AdoptError::MayNotRegister {
                grant: self::grant(schema, &table.role, rights.has_group),
                role: table.role.clone(),
            })
        } else if marking.is_some() && !rights.may_mark {
            Some(AdoptError::MayNotMark {
                role: rights.role.clone(),
                owner: rights.tidings_owner.clone(),
            })
        } else {
            None
        };
        Ok(copying.script(marking.as_ref(), grant.as_deref(), denial))
    }

    /// Returns the SQL that ends the copying. The table may be gone.
    ///
    /// # Errors
    ///
    /// [`AdoptError`], if there is no such table and none of that name was adopted.
    pub async fn remove(&self, table: &str) -> Result<Script, AdoptError> {
        let (client, schema) = (&self.client, self.schema);
        let adopted = self.adopted().await?;
        match table::find_any(client, table).await {
            Ok(table) => {
                let denial = (!table.may_act).then(|| AdoptError::NotOwner {
                    table: table.shown(),
                    owner: table.owner.clone(),
                    role: table.role.clone(),
                });
                Ok(script::removal(
                    schema,
                    &table.schema,
                    &table.name,
                    true,
                    denial,
                ))
            }
            Err(error @ AdoptError::NoTable { .. }) => {
                let (home, name) = table::parts(client, table).await?;
                let is_meant = |(adopted_schema, adopted_name): &&(String, String)| {
                    *adopted_name == name && home.as_ref().is_none_or(|home| home == adopted_schema)
                };
                let mut meant = adopted.iter().filter(is_meant);
                let (Some((home, name)), None) = (meant.next(), meant.next()) else {
                    return Err(error);
                };
                if let Some(now) = table::copied_as(client, schema, name).await? {
                    return Err(AdoptError::Renamed {
                        table: format!("{}.{}", quoted(home), quoted(name)),
                        now,
                    });
                }
                Ok(script::removal(schema, home, name, false, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Runs a script in one transaction. Applications that write to the table wait for at
    /// most two seconds at a time.
    ///
    /// # Errors
    ///
    /// [`AdoptError::InUse`] if other sessions use the table for longer than `limit`.
    /// Nothing was changed if it fails.
    pub async fn apply(&self, script: Script, limit: Duration) -> Result<(), AdoptError> {
        if let Some(denial) = script.denial {
            return Err(denial);
        }
        let give_up = Instant::now() + limit;
        loop {
            let error = match self.client.batch_execute(&script.sql).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.client.batch_execute("rollback").await?;
            let waited = [
                SqlState::LOCK_NOT_AVAILABLE,
                SqlState::T_R_DEADLOCK_DETECTED,
            ];
            if !error.code().is_some_and(|code| waited.contains(code)) {
                return Err(AdoptError::Failed(error));
            }
            if Instant::now() + LOCK_PAUSE > give_up {
                return Err(AdoptError::InUse {
                    table: script.table,
                    limit,
                    source: error,
                });
            }
            sleep(LOCK_PAUSE).await;
        }
    }

    /// Has Postgres analyse a query, without running it.
    async fn try_out(&self, option: ExpressionOption, query: &str) -> Result<(), AdoptError> {
        match self.client.prepare(query).await {
            Ok(_) => Ok(()),
            Err(error) if error.as_db_error().is_some() => Err(AdoptError::rejected(option, error)),
            Err(error) => Err(error.into()),
        }
    }

    async fn rights(&self, table: &AdoptableTable) -> Result<Rights, AdoptError> {
        let rights = include_str!("../../sql/adoption_rights.sql");
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&self.schema.name(), Type::TEXT),
            (&table.owner, Type::NAME),
            (&table.schema, Type::TEXT),
        ];
        let rows = self.client.query_typed(rights, &parameters).await?;
        let row = rows
            .first()
            .ok_or_else(|| AdoptError::NotInstalled(self.schema.clone()))?;
        Ok(Rights {
            tidings_owner: row.try_get("tidings_owner")?,
            has_group: row.try_get("has_group")?,
            may_insert: row.try_get("may_insert")?,
            may_create: row.try_get("may_create")?,
            may_grant: row.try_get("may_grant")?,
            may_register: row.try_get("may_register")?,
            may_mark: row.try_get("may_mark")?,
            may_reach: row.try_get("may_reach")?,
            role: row.try_get("role")?,
            replaces_triggers: row.try_get("replaces_triggers")?,
        })
    }

    /// What the refs of a table begin with: its name, unless those of another table begin
    /// with the same. If it was adopted before, that stays: bridges find its rows by it.
    async fn prefix(&self, table: &AdoptableTable) -> Result<String, AdoptError> {
        let (short, mut is_used) = (format!("{}:", table.name), false);
        let query = self
            .schema
            .fill(include_str!("../../sql/adopted_tables.sql"));
        let rows = match self.client.query_typed(&query, &[]).await {
            // The registration will tell.
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Ok(short);
            }
            rows => rows?,
        };
        for row in &rows {
            let (schema, name): (&str, &str) = (row.try_get("schema")?, row.try_get("name")?);
            let prefix: Option<String> = row.try_get("ref_prefix")?;
            match prefix {
                Some(prefix) if schema == table.schema && name == table.name => return Ok(prefix),
                Some(prefix) if prefix == short => is_used = true,
                _ => {}
            }
        }
        Ok(match is_used {
            true => format!("{}.{short}", table.schema),
            false => short,
        })
    }

    /// Schema and name of each adopted table.
    async fn adopted(&self) -> Result<Vec<(String, String)>, AdoptError> {
        let query = self
            .schema
            .fill(include_str!("../../sql/adopted_tables.sql"));
        let rows = match self.client.query_typed(&query, &[]).await {
            Err(error)
                if [
                    Some(&SqlState::UNDEFINED_TABLE),
                    Some(&SqlState::INVALID_SCHEMA_NAME),
                ]
                .contains(&error.code()) =>
            {
                return Err(AdoptError::NotInstalled(self.schema.clone()));
            }
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Vec::new(),
            rows => rows?,
        };
        let names = rows
            .iter()
            .map(|row| Ok((row.try_get("schema")?, row.try_get("name")?)));
        names.collect()
    }
}

/// The statement that lets a role insert into notifications and adopt tables.
pub fn grant(schema: &SchemaName, role: &str, has_group: bool) -> String {
    let role = quoted(role);
    if has_group {
        return format!("grant tidings_writer to {role};");
    }
    format!(
        "grant usage on schema {} to {role}; grant insert (user_id, text, event, ref) on {} to \
         {role}; grant select on {} to {role}; grant execute on function {}, {} to {role};",
        schema.quoted(),
        schema.qualified("notifications"),
        schema.qualified("tidings_adopted"),
        schema.qualified("tidings_adopt(regclass, text, name)"),
        schema.qualified("tidings_unadopt(name, name)"),
    )
}
