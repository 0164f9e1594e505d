-- Whether an index was built to its end; no row if it doesn't exist. `create index
-- concurrently` leaves one that wasn't if it fails.
--
-- $1 schema, $2 its name.
select i.indisvalid
from pg_class as c
join pg_index as i on i.indexrelid = c.oid
where
  c.relnamespace = (select oid from pg_namespace where nspname = $1)
  and c.relname = $2
