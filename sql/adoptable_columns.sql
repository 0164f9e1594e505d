-- The columns of a table. The type is without its length: a cast to a length would cut
-- texts off. (-1, since without a modifier `character` and `bit` mean one of them.)
--
-- $1 oid of the table.
select
  attname::text as name,
  format_type(atttypid, -1) as type,
  not attnotnull as is_nullable,
  attgenerated <> '' as is_generated
from pg_attribute
where attrelid = $1 and attnum > 0 and not attisdropped
order by attnum
