-- A row of an adopted table that can't be marked in time no longer keeps those before it
-- from being looked at: what is read together with `most` 1 is passed over.
--
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
create or replace function :"schema".tidings_mark_adopted(
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
