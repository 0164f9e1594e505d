-- Relations of one name that may be meant by `tidings adopt`, and what matters for that.
--
-- $1 name, $2 schema or null for any, $3 name of the function that would copy its rows.
-- `root` is the table that a partition belongs to. `key` are the columns of the primary
-- key, in its order. `may_use`: this role may use its schema. `hides_rows`: row-level
-- security hides rows from the owner, too. `taken_by`: another table whose trigger executes
-- a function of that name.
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
  has_schema_privilege(n.oid, 'usage') as may_use,
  c.relrowsecurity and c.relforcerowsecurity
    and not exists (
      select from pg_roles as r where r.oid = c.relowner and (r.rolsuper or r.rolbypassrls)
    ) as hides_rows,
  current_user::text as role,
  array(
    select a.attname::text
    from pg_index as i
    cross join unnest(i.indkey) with ordinality as k (attnum, place)
    join pg_attribute as a on a.attrelid = c.oid and a.attnum = k.attnum
    where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts
    order by k.place
  ) as key,
  (
    select t.tgrelid::regclass::text
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace = n.oid and p.proname = $3 and t.tgrelid <> c.oid
    limit 1
  ) as taken_by
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where
  c.relname = $1
  and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and (n.nspname = $2 or $2 is null)
order by n.nspname
