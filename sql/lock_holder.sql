-- The session whose transaction has held a lock on one of our tables for longest,
-- as far as this role may see it.
--
-- $1 schema.
select
  concat_ws(
    ' ',
    format('session %s', s.pid),
    format('(%s)', nullif(concat_ws(', ', s.usename, nullif(s.application_name, '')), ''))
  ) as who,
  s.pid,
  extract(epoch from clock_timestamp() - s.xact_start)::bigint as seconds
from pg_locks as l
join pg_stat_activity as s on s.pid = l.pid
join pg_class as c on c.oid = l.relation
where
  l.database = (select oid from pg_database where datname = current_database())
  and l.granted
  and l.pid <> pg_backend_pid()
  and c.relnamespace = to_regnamespace(quote_ident($1))
  and c.relkind = 'r'
  and (c.relname in ('notifications', 'stream_tickets') or c.relname like 'tidings\_%')
order by s.xact_start
limit 1
