-- About how many rows a table has: as last counted, or else at 50 bytes each. And what
-- one of its indexes is ordered by first.
--
-- $1 the schema, $2 the table, $3 the index, or null.
select
  greatest(c.reltuples::bigint, pg_relation_size(c.oid) / 50) as rows,
  (
    select pg_get_indexdef(i.oid, 1, false)
    from pg_class as i
    where i.relnamespace = c.relnamespace and i.relname = $3 and i.relkind in ('i', 'I')
  ) as leading
from pg_class as c
join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2
