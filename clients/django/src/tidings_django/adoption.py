"""The SQL that copies rows of an application's table into Tidings' table.

A statement trigger copies within the transaction that inserts, so a copy exists if and only if the
row does. It is the SQL that `tidings adopt` prints, so that `tidings check` and `tidings uninstall`
know it; only this module knows its form. All fields of its classes are SQL: quoted names, literals,
and expressions over the columns of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

TRIGGER = "tidings_copy"


@dataclass(frozen=True)
class Table:
    """The application's table, and the names of what is created for it."""

    name: str
    """Qualified, because the functions' search path doesn't include its schema."""
    literal: str
    schema_literal: str
    name_literal: str
    owner: str
    keys: tuple[str, ...]
    """The columns of the primary key."""
    key_type: str
    """The type of the first of them."""
    prefix: str
    """What `ref` begins with, which is followed by the primary key."""
    prefix_length: int
    copy_function: str
    mark_function: str
    mark_function_literal: str
    """Without the schema."""


@dataclass(frozen=True)
class Tidings:
    """Functions and tables of Tidings, qualified."""

    notifications: str
    adopt: str
    unadopt: str
    owner: str


@dataclass(frozen=True)
class Copy:
    """What is copied of each row."""

    user: str
    text: str
    event: str
    condition: str


@dataclass(frozen=True)
class Mark:
    """How a row is marked that was sent."""

    column: str
    value: str
    unset: str
    """What it `is` before."""


def adopt(tidings: Tidings, table: Table, copy: Copy, mark: Mark | None) -> list[str]:
    marker = "null" if mark is None else table.mark_function_literal
    return [
        *_create_function(
            f"{table.copy_function}()",
            "trigger",
            table,
            f"""
#variable_conflict use_column
begin
{_insert(tidings, table, copy, "added", copy.condition)};
  return null;
end
""",
        ),
        f"drop trigger if exists {TRIGGER} on {table.name}",
        f"""\
create trigger {TRIGGER} after insert on {table.name}
referencing new table as added for each statement
execute function {table.copy_function}()""",
        # Fires the trigger without a row, so that an expression that Postgres rejects, or a missing
        # privilege, fails here and not when the application inserts its next row.
        f"insert into {table.name} ({table.keys[0]}) "
        f"select {table.keys[0]} from {table.name} where false",
        *(
            [f"drop function if exists {table.mark_function}(text[])"]
            if mark is None
            else _adopt_marks(tidings, table, mark)
        ),
        f"select {tidings.adopt}({table.literal}, {table.prefix}, {marker})",
    ]


def copy_existing(tidings: Tidings, table: Table, copy: Copy, existing: str) -> str:
    """Copies those of the rows that are in the table already."""
    return _insert(tidings, table, copy, table.name, f"{copy.condition} and ({existing})")


def release(tidings: Tidings, table: Table) -> list[str]:
    return [
        f"drop trigger if exists {TRIGGER} on {table.name}",
        f"drop function if exists {table.copy_function}()",
        f"drop function if exists {table.mark_function}(text[])",
        f"select {tidings.unadopt}({table.schema_literal}, {table.name_literal})",
    ]


def _insert(tidings: Tidings, table: Table, copy: Copy, source: str, condition: str) -> str:
    key = " || ',' || ".join(f"n.{column}::text" for column in table.keys)
    order = ", ".join(f"n.{column}" for column in table.keys)
    return f"""\
  insert into {tidings.notifications} (user_id, text, event, ref)
  select
    ({copy.user})::text,
    ({copy.text})::text,
    {copy.event},
    {table.prefix} || {key}
  from {source} as n
  where {condition}
  order by {order}"""


def _adopt_marks(tidings: Tidings, table: Table, mark: Mark) -> list[str]:
    (key,) = table.keys
    begin = table.prefix_length + 1
    signature = f"{table.mark_function}(refs text[])"
    return [
        # The bridge calls it after it has marked the notifications, and again until it succeeds.
        # Rows that the application has locked are skipped.
        *_create_function(
            signature,
            "text",
            table,
            f"""
#variable_conflict use_variable
declare
  failure text;
  half int := cardinality(refs) / 2;
begin
  begin
    update {table.name} as n
    set {mark.column} = {mark.value}
    from (
      select m.{key}
      from {table.name} as m
      where
        m.{key} = any (array(select substr(r, {begin})::{table.key_type} from unnest(refs) as r))
        and m.{mark.column} is {mark.unset}
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
      perform substr(refs[1], {begin})::{table.key_type};
      return failure;
    exception
      -- Another writer made a ref that only looks like one of this table.
      when others then
        return null;
    end;
  end if;
  -- A row that can't be marked must not keep others from it.
  failure := {table.mark_function}(refs[1:half]);
  return coalesce({table.mark_function}(refs[half + 1:]), failure);
end
""",
        ),
        f"grant execute on function {table.mark_function}(text[]) to {tidings.owner}",
    ]


def _create_function(signature: str, returns: str, table: Table, body: str) -> list[str]:
    """It runs as the table's owner, so that every role that may insert there still can."""
    quote = "$tidings$"
    while quote in body:
        quote = f"$_{quote[1:]}"
    return [
        f"""\
create or replace function {signature} returns {returns}
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
set datestyle = iso
as {quote}{body}{quote}""",
        f"alter function {signature} owner to {table.owner}",
        f"revoke all on function {signature} from public",
    ]
