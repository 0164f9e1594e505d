-- The objects that migrations created in a schema: those that have one of their names
-- and belong to the history's owner. Dependent objects (indexes, the sequences of
-- columns) are dropped with these.
--
-- $1 schema, $2 the names.
--
-- Ordered so that they can be dropped: dependents first. All objects of one kind are
-- dropped in one statement, so their order among each other doesn't matter.
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
