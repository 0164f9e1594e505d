//! Writes the SQL that adopts a table.
//!
//! It is for people, who read it before they run it or put it into a migration. It runs in
//! any session: all names are qualified, and the functions pin what their texts mean.

use std::{fmt::Write, iter};

use super::{
    AdoptError, Expression,
    names::{TRIGGER, copy_function, mark_function},
    table::{AdoptableTable, TableColumn},
};
use crate::{
    postgres::schema::{LOCK_TIMEOUT, SchemaName, literal, quoted},
    runtime::escape,
};

/// What functions run with, whoever calls them. A ref must not depend on how a session
/// writes dates.
const PINNED: &str = "security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set datestyle = iso";

/// SQL for psql or a migration, in one transaction.
#[derive(Debug)]
pub struct Script {
    pub sql: String,
    /// The table that it changes.
    pub(super) table: String,
    /// Why this session could not run it.
    pub(super) denial: Option<AdoptError>,
}

/// What is copied from which table.
pub(super) struct Copying<'a> {
    pub(super) schema: &'a SchemaName,
    pub(super) table: &'a AdoptableTable,
    pub(super) replaces_triggers: bool,
    pub(super) user: &'a TableColumn,
    pub(super) text: &'a Expression,
    pub(super) event: Option<&'a Expression>,
    pub(super) reference: Option<&'a Expression>,
    /// What refs begin with that are made of the primary key.
    pub(super) prefix: String,
    pub(super) condition: Option<&'a Expression>,
    pub(super) existing: Option<&'a Expression>,
}

/// How rows are marked that were sent.
pub(super) struct Marking<'a> {
    column: &'a TableColumn,
    key: &'a TableColumn,
    tidings_owner: &'a str,
    /// Whether the owner of Tidings may use the schema of the table.
    may_reach: bool,
}

impl<'a> Marking<'a> {
    /// # Errors
    ///
    /// [`AdoptError`], if the table has no suitable key or the column can't be set.
    pub(super) fn of(
        table: &'a AdoptableTable,
        column: &'a TableColumn,
        tidings_owner: &'a str,
        may_reach: bool,
    ) -> Result<Self, AdoptError> {
        let key = match table.key.as_slice() {
            [key] => table.key_column(key),
            _ => None,
        };
        let key = key.ok_or_else(|| AdoptError::MarkKey(table.shown()))?;
        let kinds = [
            "boolean",
            "timestamp without time zone",
            "timestamp with time zone",
        ];
        if !kinds.contains(&column.kind.as_str()) || column.is_generated {
            return Err(AdoptError::MarkColumn {
                column: quoted(&column.name),
                found: match column.is_generated {
                    true => format!("{}, and is generated", column.kind),
                    false => column.kind.clone(),
                },
            });
        }
        Ok(Self {
            column,
            key,
            tidings_owner,
            may_reach,
        })
    }
}

/// The beginning and the end of the statement in the function that copies rows, around
/// the query.
fn insert(schema: &SchemaName) -> String {
    let notifications = schema.qualified("notifications");
    format!("  insert into {notifications} (user_id, text, event, ref)\n")
}
const INSERT_END: &str = ";\n  return null;\nend\n";
const FROM_ADDED: &str = "\n  from added as n\n";

/// The query that a function made here copies rows with, over the table instead of the
/// rows that were just inserted. `None`, if it was not made here.
///
/// Without system columns, which new rows don't have either.
pub fn copied_rows(schema: &SchemaName, table: &str, source: &str) -> Option<Expression> {
    let (_, query) = source.split_once(&insert(schema))?;
    let query = query.strip_suffix(INSERT_END)?;
    let (values, conditions) = query.rsplit_once(FROM_ADDED)?;
    let query = format!("{values}{}{conditions}", from(table));
    query.parse().ok()
}

fn from(table: &str) -> String {
    format!("\n  from (select * from {table}) as n\n")
}

impl Copying<'_> {
    /// The query over the table instead of the rows that were just inserted.
    pub(super) fn query(&self) -> String {
        self.select(&from(&self.table.shown()), None)
    }

    /// A query that is valid if the expression is one. In a condition, there can be no
    /// aggregates, window functions and sets.
    pub(super) fn value_query(&self, value: &Expression) -> String {
        let from = from(&self.table.shown());
        format!("select{from}  where ({value})::text is not null")
    }

    /// The same for a condition.
    pub(super) fn condition_query(&self, condition: &Expression) -> String {
        let from = from(&self.table.shown());
        format!("select{from}  where ({condition})")
    }

    fn select(&self, from: &str, also: Option<&Expression>) -> String {
        let column = |name: &str| format!("n.{}", quoted(name));
        let value = |value: &Expression| format!("({value})::text");
        let key = || {
            let columns = self.table.key.iter().map(|name| column(name) + "::text");
            let columns: Vec<_> = columns.collect();
            format!(
                "{} || {}",
                literal(&self.prefix),
                columns.join(" || ',' || ")
            )
        };
        let user = column(&self.user.name);
        let values = [
            format!("{user}::text"),
            value(self.text),
            self.event.map_or_else(|| "null".to_owned(), value),
            self.reference.map_or_else(key, value),
        ];
        let conditions = [self.condition, also].into_iter().flatten();
        let conditions = conditions.map(|condition| format!(" and ({condition})"));
        let order = match self.table.key.as_slice() {
            [] => String::new(),
            key => {
                let key: Vec<_> = key.iter().map(|name| column(name)).collect();
                format!("\n  order by {}", key.join(", "))
            }
        };
        format!(
            "  select\n    {}{from}  where {user} is not null{}{order}",
            values.join(",\n    "),
            conditions.collect::<String>()
        )
    }

    /// The whole script.
    pub(super) fn script(
        &self,
        marking: Option<&Marking<'_>>,
        grant: Option<&str>,
        denial: Option<AdoptError>,
    ) -> Script {
        let table = self.table.shown();
        let mut sql = String::new();
        // Writing to a String never fails.
        let _ = self.write(&mut sql, marking, grant);
        Script { sql, table, denial }
    }

    fn write(
        &self,
        sql: &mut String,
        marking: Option<&Marking<'_>>,
        grant: Option<&str>,
    ) -> std::fmt::Result {
        let (table, owner) = (self.table.shown(), quoted(&self.table.owner));
        let home = |name: &str| format!("{}.{}", quoted(&self.table.schema), quoted(name));
        let copy = home(&copy_function(&self.table.name));
        let (shown, shown_owner) = (escape::line(&table), escape::line(&owner));
        writeln!(
            sql,
            "-- Copies each row that is inserted into {shown} into the notifications of Tidings, in \
             the\n-- same transaction (tidings adopt). Run it as {shown_owner}, who owns the table, \
             or as a role that\n-- can act as {shown_owner}; again if something is to change."
        )?;
        begin(sql)?;
        if let Some(grant) = grant {
            writeln!(
                sql,
                "-- The owner of the table may not insert notifications yet. A DBA has to run this."
            )?;
            writeln!(sql, "{grant}\n")?;
        }
        writeln!(
            sql,
            "-- It runs with the privileges of {shown_owner}: whoever may insert into the table \
             may go on. If\n-- a row can't be a notification (a user or an event's name of 0 \
             bytes, a text over 1 MiB,\n-- a ref over 255 bytes), its INSERT fails with the name \
             of the constraint."
        )?;
        if self.user.is_nullable {
            let user = quoted(&self.user.name);
            let user = escape::line(&user);
            writeln!(sql, "-- Rows whose {user} is null are not copied.")?;
        }
        let source = format!(
            "\n#variable_conflict use_column\nbegin\n{}{}{INSERT_END}",
            insert(self.schema),
            self.select(FROM_ADDED, None)
        );
        create_function(sql, &format!("{copy}()"), "trigger", &owner, &source)?;
        writeln!(
            sql,
            "\n-- It fires once per statement, also for bulk inserts and COPY. It doesn't fire \
             where\n-- session_replication_role is replica, and for logical replication; and, on a \
             partitioned\n-- table, for rows that are inserted directly into a partition."
        )?;
        let create = match self.replaces_triggers {
            true => "create or replace trigger".to_owned(),
            false => format!("drop trigger if exists {TRIGGER} on {table};\ncreate trigger"),
        };
        writeln!(
            sql,
            "{create} {TRIGGER} after insert on {table}\nreferencing new table as added for \
             each statement\nexecute function {copy}();"
        )?;
        let mark = home(&mark_function(&self.table.name));
        match marking {
            Some(marking) => self.write_marking(sql, marking, &mark)?,
            None => writeln!(sql, "drop function if exists {mark}(text[]);")?,
        }
        if let Some(existing) = self.existing {
            self.write_existing(sql, existing)?;
        }
        let prefix = match self.reference {
            None => literal(&self.prefix),
            Some(_) => "null".to_owned(),
        };
        let marker = match marking {
            Some(_) => literal(&mark_function(&self.table.name)),
            None => "null".to_owned(),
        };
        writeln!(
            sql,
            "\n-- Lets `tidings check` find out if this is changed, and `tidings uninstall` remove \
             it.\nselect {}({}, {prefix}, {marker});",
            self.schema.qualified("tidings_adopt"),
            literal(&table)
        )?;
        writeln!(sql, "\ncommit;")
    }

    fn write_marking(
        &self,
        sql: &mut String,
        marking: &Marking<'_>,
        mark: &str,
    ) -> std::fmt::Result {
        let (table, owner) = (self.table.shown(), quoted(&self.table.owner));
        let Marking {
            column,
            key,
            tidings_owner,
            may_reach,
        } = marking;
        let tidings_owner = quoted(tidings_owner);
        let (value, unset) = match column.kind.as_str() {
            "boolean" => ("true", "not true"),
            _ => ("now()", "null"),
        };
        writeln!(
            sql,
            "\n-- Sets {} once a row was sent. The bridge calls it after it has marked the \
             notification, and\n-- again until it has succeeded; neither waits for the other. A \
             row that another session has\n-- locked is skipped.",
            escape::line(&quoted(&column.name))
        )?;
        let (column, kind, key) = (quoted(&column.name), &key.kind, quoted(&key.name));
        let begin = self.prefix.chars().count() + 1;
        let source = format!(
            "
#variable_conflict use_variable
declare
  failure text;
  half int := cardinality(refs) / 2;
begin
  begin
    update {table} as n
    set {column} = {value}
    from (
      select m.{key}
      from {table} as m
      where
        m.{key} = any (array(select substr(r, {begin})::{kind} from unnest(refs) as r))
        and m.{column} is {unset}
      order by m.{key}
      for no key update skip locked
    ) as due
    where n.{key} = due.{key};
    return null;
  exception
    when others then
      failure := sqlerrm;
  end;
  if half = 0 then
    begin
      perform substr(refs[1], {begin})::{kind};
      return failure;
    exception
      -- Another writer made a ref that only looks like one of this table.
      when others then
        return null;
    end;
  end if;
  -- A row that can't be marked must not keep others from it.
  failure := {mark}(refs[1:half]);
  return coalesce({mark}(refs[half + 1:]), failure);
end
"
        );
        create_function(
            sql,
            &format!("{mark}(refs text[])"),
            "text",
            &owner,
            &source,
        )?;
        if !may_reach {
            let schema = quoted(&self.table.schema);
            writeln!(sql, "grant usage on schema {schema} to {tidings_owner};")?;
        }
        writeln!(
            sql,
            "grant execute on function {mark}(text[]) to {tidings_owner};"
        )
    }

    /// Names are resolved and dates written as in the function, and as before afterwards:
    /// other statements of the same migration follow.
    fn write_existing(&self, sql: &mut String, existing: &Expression) -> std::fmt::Result {
        let from = format!("\n  from {} as n\n", self.table.shown());
        let message = format!(
            "{} is adopted already, so existing rows may have been copied, and would be sent again",
            self.table.shown()
        );
        let source = format!(
            "
#variable_conflict use_column
declare
  path constant text := pg_catalog.current_setting('search_path');
  dates constant text := pg_catalog.current_setting('datestyle');
begin
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  perform pg_catalog.set_config('datestyle', 'iso', true);
  if exists (
    select from {} as a where a.schema_name = {} and a.table_name = {}
  ) then
    raise exception using
      message = {},
      hint = 'leave out what copies existing rows (--existing), or end the copying first (--remove)';
  end if;
{}{};
  perform pg_catalog.set_config('search_path', path, true);
  perform pg_catalog.set_config('datestyle', dates, true);
end
",
            self.schema.qualified("tidings_adopted"),
            literal(&self.table.schema),
            literal(&self.table.name),
            literal(&message),
            insert(self.schema),
            self.select(&from, Some(existing))
        );
        writeln!(
            sql,
            "\n-- Existing rows. Leave this out when you run the rest again.\ndo {};",
            dollar_quoted(&source)
        )
    }
}

/// The script that ends the copying.
pub(super) fn removal(
    schema: &SchemaName,
    home: &str,
    name: &str,
    is_there: bool,
    denial: Option<AdoptError>,
) -> Script {
    let table = format!("{}.{}", quoted(home), quoted(name));
    let function = |name: String| format!("{}.{}", quoted(home), quoted(&name));
    let (copy, mark) = (function(copy_function(name)), function(mark_function(name)));
    let mut sql = format!(
        "-- Ends the copying of {} into the notifications of Tidings (tidings adopt).\n",
        escape::line(&table)
    );
    let unadopt = schema.qualified("tidings_unadopt");
    let (home, name) = (literal(home), literal(name));
    // Writing to a String never fails.
    let _ = begin(&mut sql);
    if is_there {
        let _ = writeln!(sql, "drop trigger if exists {TRIGGER} on {table};");
    }
    let _ = write!(
        sql,
        "drop function if exists {copy}();\ndrop function if exists {mark}(text[]);\nselect \
         {unadopt}({home}, {name});\n\ncommit;\n"
    );
    Script { sql, table, denial }
}

fn begin(sql: &mut String) -> std::fmt::Result {
    writeln!(
        sql,
        "--\n-- In a migration whose framework begins the transaction, leave out `begin` and \
         `commit`.\nbegin;\n-- Who inserts into the table waits for this. If it is in use for \
         longer, start again.\nset local lock_timeout = '{LOCK_TIMEOUT}';\nset local \
         standard_conforming_strings = on;\n"
    )
}

fn create_function(
    sql: &mut String,
    signature: &str,
    returns: &str,
    owner: &str,
    source: &str,
) -> std::fmt::Result {
    writeln!(
        sql,
        "create or replace function {signature} returns {returns}\nlanguage plpgsql\n{PINNED}\nas \
         {};\nalter function {signature} owner to {owner};\nrevoke all on function {signature} \
         from public;",
        dollar_quoted(source)
    )
}

/// A text between dollar signs, with a tag that first occurs again at its end.
fn dollar_quoted(text: &str) -> String {
    let numbered = (1_u32..).map(|number| format!("$tidings{number}$"));
    let mut tags = iter::once("$tidings$".to_owned()).chain(numbered);
    let is_free = |tag: &String| format!("{text}{tag}").find(tag) == Some(text.len());
    let tag = tags.find(is_free);
    let tag = tag.unwrap_or_default();
    format!("{tag}{text}{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_the_dollar_signs_around_it() {
        for (text, tag) in [
            ("body", "$tidings$"),
            ("$tidings$", "$tidings1$"),
            ("$tidings$ $tidings1$", "$tidings2$"),
            ("$tidings", "$tidings1$"),
        ] {
            let quoted = dollar_quoted(text);
            assert_eq!(quoted, format!("{tag}{text}{tag}"));
        }
    }
}
