-- Relations of one name that may be meant by `tidings adopt`, and what matters for that.
--
-- $1 name, $2 schema or null for any, $3 name of the function that would copy its rows.
-- `root` is the table that a partition belongs to. `key` are the columns of the primary
-- key, in its order. `is_taken`: the trigger of another table executes a function of that
-- name.
select
  c.oid,
  n.nspname::text as schema,
  c.relname::text as name,
  case
    when n.nspname in ('information_schema', 'pg_catalog') or n.nspname like 'pg\_toast%' then 'system'
    when c.relpersistence = 't' then 'temporary'
    when c.relispartition then 'partition'
    else c.relkind::text
  end as kind,
  case when c.relispartition then pg_partition_root(c.oid)::regclass::text end as root,
  pg_get_userbyid(c.relowner)::text as owner,
  pg_has_role(c.relowner, 'usage') as may_act,
  current_user::text as role,
  array(
    select a.attname::text
    from pg_index as i
    cross join unnest(i.indkey) with ordinality as k (attnum, place)
    join pg_attribute as a on a.attrelid = c.oid and a.attnum = k.attnum
    where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts
    order by k.place
  ) as key,
  exists (
    select
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace = n.oid and p.proname = $3 and t.tgrelid <> c.oid
  ) as is_taken
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where
  c.relname = $1
  and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and (n.nspname = $2 or $2 is null)
order by n.nspname
