-- A table whose rows are copied by the function of a table that no longer exists: the
-- table was renamed or moved to another schema after it was adopted.
--
-- $1 name of that function, $2 schema of Tidings. Whoever renames a schema renames the
-- function's, too, so it may be in any schema if the table is not in the list itself.
select c.oid::regclass::text as "table"
from pg_trigger as t
join pg_class as c on c.oid = t.tgrelid
join pg_namespace as n on n.oid = c.relnamespace
join pg_proc as p on p.oid = t.tgfoid
where
  t.tgname = 'tidings_copy'
  and not t.tgisinternal
  and p.proname = $1
  and (
    strpos(p.prosrc, format('%I.notifications', $2)) > 0
    or strpos(p.prosrc, format('"%s".notifications', replace($2, '"', '""'))) > 0
  )
  and not exists (
    select
    from :"schema".tidings_adopted as a
    where a.schema_name = n.nspname and a.table_name = c.relname
  )
order by "table"
limit 1
