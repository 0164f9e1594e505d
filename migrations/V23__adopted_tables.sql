-- Tables of applications whose rows are copied into notifications by a trigger that
-- `tidings adopt` creates. `tidings check` compares this list with the triggers, and
-- `tidings uninstall` removes them.
--
-- Names rather than oids, so that a dump that doesn't contain the tables can be restored,
-- and no row ever names a table that merely has a number again.
create table :"schema".tidings_adopted (
  schema_name name not null,
  table_name name not null,
  ref_prefix text,
  mark_function name,
  swept_at timestamptz not null default '-infinity',
  swept_to bigint,

  constraint tidings_adopted_pkey primary key (schema_name, table_name),
  -- Otherwise a ref could be one of either table.
  constraint tidings_adopted_ref_prefix unique (ref_prefix),
  constraint tidings_adopted_marks_by_ref check (mark_function is null or ref_prefix is not null)
);

comment on table :"schema".tidings_adopted is
  'Tables of applications whose new rows are copied into notifications (tidings adopt).';
comment on column :"schema".tidings_adopted.ref_prefix is
  'What the refs of its rows begin with, before the primary key; null if --ref makes them.';
comment on column :"schema".tidings_adopted.mark_function is
  'The function of its schema that marks rows of it as sent; null without --mark.';
comment on column :"schema".tidings_adopted.swept_at is
  'When notifications were last read for marks that were lost.';
comment on column :"schema".tidings_adopted.swept_to is
  'The id down to which they were read in this round; null between two rounds.';

-- Adds a table to the list, or changes its entry. Only roles that can act as the owner of
-- the table may do so: the role of the session counts, since the current one is the owner
-- of this function.
--
-- A function that marks rows is called with the privileges of the owner of this schema.
-- It runs with its own owner's, but that owner may change it at any time. So only a role
-- that can act as the owner of this schema may name one.
create function :"schema".tidings_adopt(adopted regclass, prefix text, marker name) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  place record;
begin
  select n.nspname, c.relname, c.relowner
  into place
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where c.oid = adopted;
  if not found or not pg_has_role(session_user, place.relowner, 'member') then
    raise insufficient_privilege using
      message = format('%s can not act as the owner of the table %s', session_user, adopted);
  end if;
  if marker is not null and not pg_has_role(session_user, current_user, 'member') then
    raise insufficient_privilege using
      message = format(
        'only a role that can act as %s may have Tidings call a function that marks rows',
        current_user
      );
  end if;
  insert into :"schema".tidings_adopted (schema_name, table_name, ref_prefix, mark_function)
  values (place.nspname, place.relname, prefix, marker)
  on conflict (schema_name, table_name) do update
  set
    ref_prefix = excluded.ref_prefix,
    mark_function = excluded.mark_function,
    swept_at = '-infinity',
    swept_to = null;
end
$$;

-- Removes a table from the list. Anybody who may call this may remove one that is gone.
create function :"schema".tidings_unadopt(adopted_schema name, adopted_table name) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  owner oid;
begin
  select c.relowner
  into owner
  from pg_class as c
  join pg_namespace as n on n.oid = c.relnamespace
  where n.nspname = adopted_schema and c.relname = adopted_table;
  if found and not pg_has_role(session_user, owner, 'member') then
    raise insufficient_privilege using
      message = format(
        '%s can not act as the owner of the table %I.%I', session_user, adopted_schema, adopted_table
      );
  end if;
  delete from :"schema".tidings_adopted as a
  where a.schema_name = adopted_schema and a.table_name = adopted_table;
end
$$;

-- Marks rows of an adopted table whose notifications were sent, for bridges. Returns why
-- some could not be marked, if the application's function says so.
--
-- `ids` are notifications that were just marked as sent, at most `most` of them. Without
-- ids, it reads the next `most` notifications of the table, from the youngest to the
-- oldest and over again, in order to repair marks that were lost: a page a second, and a
-- round every ten seconds, whatever the number of bridges.
--
-- If the application's function takes longer than the caller's statement timeout, nothing
-- is recorded and the caller should ask for fewer, except that a single row is passed over.
--
-- Notifications are read by statements that are planned each time. A plan that was made
-- while the table was empty would read all of it, and the settings that prevent this
-- would apply to the application's function too.
create function :"schema".tidings_mark_adopted(
  adopted_schema name,
  adopted_table name,
  ids bigint[],
  most int
)
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  adopted record;
  swept_to bigint;
  page bigint[] := ids;
  refs text[];
  failure text;
begin
  select
    a.ref_prefix,
    -- The function that `tidings adopt` creates: it belongs to the owner of the table, and
    -- runs with this owner's privileges.
    (
      select p.oid::regproc
      from pg_class as c
      join pg_namespace as n on n.oid = c.relnamespace
      join pg_proc as p on p.pronamespace = c.relnamespace and p.proowner = c.relowner
      where
        n.nspname = a.schema_name
        and c.relname = a.table_name
        and p.proname = a.mark_function
        and p.pronargs = 1
        and p.proargtypes[0] = 'text[]'::regtype
        and p.prosecdef
        and p.prokind = 'f'
        and p.prorettype = 'text'::regtype
    ) as marker
  into adopted
  from :"schema".tidings_adopted as a
  where
    a.schema_name = adopted_schema
    and a.table_name = adopted_table
    and a.mark_function is not null;
  if not found then
    return null;
  end if;
  if adopted.marker is null then
    return format(
      'the function that marks rows of %I.%I is missing, belongs to another role than the table, or '
      'does not run with its owner''s privileges',
      adopted_schema, adopted_table
    );
  end if;

  if ids is null then
    -- Who has this row is the one who reads the page.
    select a.swept_to
    into swept_to
    from :"schema".tidings_adopted as a
    where
      a.schema_name = adopted_schema
      and a.table_name = adopted_table
      and a.swept_at < clock_timestamp()
        - case when a.swept_to is null then interval '10 seconds' else interval '1 second' end
    for no key update skip locked;
    if not found then
      return null;
    end if;
    execute format(
      'select array(select id from %I.notifications where id < $1 order by id desc limit $2)', :'schema'
    )
    into page
    using coalesce(swept_to, 9223372036854775807), most;
    update :"schema".tidings_adopted as a
    set swept_at = clock_timestamp(), swept_to = page[most]
    where a.schema_name = adopted_schema and a.table_name = adopted_table;
  end if;
  execute format(
    'select array(select ref from %I.notifications '
    'where id = any ($1) and sent_at is not null and starts_with(ref, $2))',
    :'schema'
  )
  into refs
  using page[1:most], adopted.ref_prefix;
  if cardinality(refs) > 0 then
    begin
      execute format('select %s($1)', adopted.marker) into failure using refs;
    exception
      when query_canceled then
        if most > 1 then
          raise;
        end if;
        failure := sqlerrm;
    end;
  end if;
  return failure;
end
$$;

revoke all on function :"schema".tidings_adopt(regclass, text, name) from public;
revoke all on function :"schema".tidings_unadopt(name, name) from public;
revoke all on function :"schema".tidings_mark_adopted(name, name, bigint[], int) from public;

comment on function :"schema".tidings_adopt(regclass, text, name) is
  'Adds a table to tidings_adopted; called by the SQL that tidings adopt prints (Tidings).';
comment on function :"schema".tidings_unadopt(name, name) is
  'Removes a table from tidings_adopted (Tidings).';
comment on function :"schema".tidings_mark_adopted(name, name, bigint[], int) is
  'Marks rows of an adopted table whose notifications were sent; for bridges (Tidings).';

-- Roles that were granted the functions of bridges by name, instead of through
-- tidings_bridge, get what bridges now need.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant execute on function %I.tidings_mark_adopted(name, name, bigint[], int) to %s; '
        'grant select on table %1$I.tidings_adopted to %2$s',
        :'schema',
        a.grantee::regrole
      )
    from pg_proc as p
    cross join aclexplode(p.proacl) as a
    where
      p.pronamespace = to_regnamespace(quote_ident(:'schema'))
      and p.proname = 'tidings_disconnections_page'
      and a.grantee not in (0, p.proowner)
      and a.privilege_type = 'EXECUTE'
  loop
    execute statement;
  end loop;
end
$$;
