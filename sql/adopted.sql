-- Adopted tables, and what their triggers do.
--
-- $1 schema of Tidings. `fires` is pg_trigger.tgenabled, null if there is no trigger;
-- `source` is the function that it executes, and `owner` whose privileges that function
-- has, null if they are its caller's or not the table owner's. `marks`: the function that
-- marks rows is there and sound, null without --mark.
select
  format('%I.%I', a.schema_name, a.table_name) as "table",
  a.table_name::text as name,
  c.oid is not null as is_there,
  pg_get_userbyid(c.relowner)::text as table_owner,
  t.tgenabled::text as fires,
  p.oid::regprocedure::text as function,
  p.prosrc as source,
  case when p.prosecdef and p.proowner = c.relowner then pg_get_userbyid(p.proowner)::text end as owner,
  has_schema_privilege(c.relowner, place.oid, 'usage')
    and has_column_privilege(c.relowner, notifications.oid, 'user_id', 'insert')
    and has_column_privilege(c.relowner, notifications.oid, 'text', 'insert')
    and has_column_privilege(c.relowner, notifications.oid, 'event', 'insert')
    and has_column_privilege(c.relowner, notifications.oid, 'ref', 'insert') as may_insert,
  to_regrole('tidings_writer') is not null as has_group,
  case
    when a.mark_function is not null then
      exists (
        select
        from pg_proc as m
        where
          m.pronamespace = home.oid
          and m.proname = a.mark_function
          and m.pronargs = 1 and m.proargtypes[0] = 'text[]'::regtype
          and m.proowner = c.relowner
          and m.prosecdef
          and m.prorettype = 'text'::regtype
          and has_function_privilege(registry.relowner, m.oid, 'execute')
          and has_schema_privilege(registry.relowner, home.oid, 'usage')
      )
  end as marks
from :"schema".tidings_adopted as a
join pg_namespace as place on place.nspname = $1
join pg_class as notifications
  on notifications.relnamespace = place.oid and notifications.relname = 'notifications'
join pg_class as registry
  on registry.relnamespace = place.oid and registry.relname = 'tidings_adopted'
left join pg_namespace as home on home.nspname = a.schema_name
left join pg_class as c
  on c.relnamespace = home.oid and c.relname = a.table_name and c.relkind in ('r', 'p')
left join pg_trigger as t
  on t.tgrelid = c.oid and t.tgname = 'tidings_copy' and not t.tgisinternal
left join pg_proc as p on p.oid = t.tgfoid
order by a.schema_name, a.table_name
