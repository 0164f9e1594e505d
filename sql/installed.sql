-- What migrations made in a schema: what bears one of their names and belongs to
-- the owner of the history. Parts of others (indexes, the sequences of columns)
-- go with these.
--
-- $1 schema, $2 the names.
--
-- In an order in which they can go: what uses others first. All of one kind go in
-- one statement, so that their order among each other doesn't matter.
with
  history as (
    select relowner as owner
    from pg_class
    where
      relname = 'tidings_schema_history'
      and relnamespace = (select oid from pg_namespace where nspname = $1)
  )
select turn, kind, string_agg(identity, ', ' order by identity) as identities
from (
  select
    case relkind when 'v' then 1 when 'r' then 2 else 3 end as turn,
    case relkind when 'v' then 'view' when 'r' then 'table' else 'sequence' end as kind,
    format('%I.%I', $1, relname) as identity
  from pg_class as c
  join history on relowner = owner
  where
    relnamespace = (select oid from pg_namespace where nspname = $1)
    and relname = any($2::text[])
    and relkind in ('v', 'r', 'S')
    and not exists (
      select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype in ('a', 'i')
      and refclassid = 'pg_class'::regclass and relkind = 'S'
    )
  union all
  select
    4,
    'routine',
    format('%I.%I(%s)', $1, proname, pg_get_function_identity_arguments(f.oid))
  from pg_proc as f
  join history on proowner = owner
  where
    pronamespace = (select oid from pg_namespace where nspname = $1)
    and proname = any($2::text[])
    and prokind in ('f', 'p')
) as ours
group by turn, kind
order by turn
