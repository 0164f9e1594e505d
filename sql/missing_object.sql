-- Objects that migrations created and that are missing, or belong to another role than
-- the history does.
--
-- $1 schema, $2 names of tables, views and sequences, $3 names of functions. `owners`:
-- the owners of the objects of that name, null if there are none. `fix`: a statement
-- that gives one of them to the history's owner.
with
  place as (select oid from pg_namespace where nspname = $1),
  history (owner) as (
    select relowner
    from pg_class
    where relname = 'tidings_schema_history' and relnamespace = (select oid from place)
  ),
  wanted (name, is_function) as (
    select name, false from unnest($2::text[]) as name
    union all
    select name, true from unnest($3::text[]) as name
  ),
  present (name, is_function, owner, object) as (
    select
      relname,
      false,
      relowner,
      case relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end
        || ' ' || oid::regclass
    from pg_class
    where relnamespace = (select oid from place) and relkind in ('r', 'p', 'v', 'S')
    union all
    select proname, true, proowner, 'routine ' || oid::regprocedure
    from pg_proc
    where pronamespace = (select oid from place)
  )
select
  w.name,
  (select owner::regrole::text from history) as owner,
  (
    select string_agg(distinct p.owner::regrole::text, ', ')
    from present as p
    where p.name = w.name and p.is_function = w.is_function
  ) as owners,
  (
    select format('alter %s owner to %s;', min(p.object), (select owner::regrole from history))
    from present as p
    where p.name = w.name and p.is_function = w.is_function
    having count(*) > 0
  ) as fix
from wanted as w
where not exists (
  select
  from present as p
  where
    p.name = w.name
    and p.is_function = w.is_function
    and p.owner = (select owner from history)
)
order by w.name
limit 1
