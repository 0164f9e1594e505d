"""The SQL that copies rows of an application's table into Tidings' table.

A statement trigger copies within the transaction that inserts, so a copy exists if and only if the
row does. Only this module knows the form of the SQL. All fields of its classes are SQL: quoted
names, and expressions over the columns of the table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """The application's table, and the names of what is created for it."""

    name: str
    """Qualified, because the functions' search path doesn't include its schema."""
    label: str
    """The name as a literal: what `ref` begins with."""
    owner: str
    key: str
    key_type: str
    notifications: str
    """Tidings' table, qualified."""
    copy_function: str
    mark_function: str
    mark_trigger: str


@dataclass(frozen=True)
class Copy:
    """What is copied of each row."""

    user: str
    text: str
    event: str | None
    condition: str | None
    has_ref: bool
    """Whether Tidings' table has the column `ref`."""


@dataclass(frozen=True)
class Mark:
    """How a row is marked when it was delivered."""

    assignment: str
    is_unmarked: str


def adopt(table: Table, copy: Copy, mark: Mark | None) -> list[str]:
    statements = [
        *release(table),
        *_create_function(
            table,
            table.copy_function,
            f"""\
begin
  {_insert(table, copy, "added", copy.condition)};
  return null;
end""",
        ),
        f"""\
create trigger tidings_copy after insert on {table.name}
referencing new table as added for each statement
execute function {table.copy_function}()""",
        # Fires the trigger without a row, so that an expression that Postgres rejects, or a missing
        # privilege, fails here and not when the application inserts its next row.
        f"insert into {table.name} ({table.key}) select {table.key} from {table.name} where false",
    ]
    return statements if mark is None else statements + _adopt_marks(table, mark)


def copy_existing(table: Table, copy: Copy, existing: str) -> str:
    """Copies those of the rows that are in the table already."""
    condition = existing if copy.condition is None else f"({copy.condition}) and ({existing})"
    return _insert(table, copy, table.name, condition)


def release(table: Table) -> list[str]:
    # With their triggers. To drop a trigger by itself, one must own its table.
    functions = (table.copy_function, table.mark_function)
    return [f"drop function if exists {function}() cascade" for function in functions]


def _insert(table: Table, copy: Copy, source: str, condition: str | None) -> str:
    columns = {
        "user_id": f"({copy.user})::text",
        "text": f"({copy.text})::text",
        "event": copy.event,
        "ref": f"{table.label} || ':' || {table.key}" if copy.has_ref else None,
    }
    given = {name: value for name, value in columns.items() if value is not None}
    # Only between lines: a literal may contain some.
    return "\n  ".join(
        [
            f"insert into {table.notifications} ({', '.join(given)})",
            f"select {', '.join(given.values())}",
            f"from {source}",
            *([] if condition is None else [f"where {condition}"]),
            f"order by {table.key}",
        ]
    )


def _adopt_marks(table: Table, mark: Mark) -> list[str]:
    return [
        # Rows that the application has locked are skipped, and an error only causes a warning: a
        # mark may be lost, a delivery may not.
        *_create_function(
            table,
            table.mark_function,
            f"""\
begin
  update {table.name} as adopted set {mark.assignment}
  from (
    select {table.key} from {table.name}
    where {table.key} in (
      select substr(m.ref, length({table.label}) + 2)::{table.key_type}
      from marked as m join unmarked as u using (id)
      where starts_with(m.ref, {table.label} || ':')
        and m.sent_at is not null and u.sent_at is null
    ) and {mark.is_unmarked}
    order by {table.key}
    for no key update skip locked
  ) as delivered
  where adopted.{table.key} = delivered.{table.key};
  return null;
exception when others then
  raise warning 'delivered rows of % could not be marked: %', {table.label}, sqlerrm;
  return null;
end""",
        ),
        f"""\
create trigger {table.mark_trigger} after update on {table.notifications}
referencing old table as unmarked new table as marked for each statement
execute function {table.mark_function}()""",
    ]


def _create_function(table: Table, name: str, body: str) -> list[str]:
    """It runs as the table's owner, so that every role that may insert there still can."""
    quote = "$body$"
    while quote in body:
        quote = f"$_{quote[1:]}"
    return [
        f"""\
create function {name}() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as {quote}
{body}
{quote}""",
        f"alter function {name}() owner to {table.owner}",
        f"revoke all on function {name}() from public",
    ]
