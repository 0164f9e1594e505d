-- Whether an index exists and was not built to its end: whoever built it gave up.
--
-- $1 schema, $2 its name.
select coalesce(bool_or(not i.indisvalid), false)
from pg_class as c
join pg_index as i on i.indexrelid = c.oid
where
  c.relnamespace = (select oid from pg_namespace where nspname = $1)
  and c.relname = $2
