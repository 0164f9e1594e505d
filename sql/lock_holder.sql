-- The session that uses our tables in the oldest open transaction, as far as this role
-- may see it. Sessions that only read come last, since few migrations wait for them.
--
-- $1 schema. `pid` is that of a session that may be terminated.
select
  concat_ws(
    ' ',
    format('session %s', s.pid),
    '(' || nullif(
      concat_ws(
        ', ',
        s.usename,
        nullif(s.application_name, ''),
        nullif(s.backend_type, 'client backend')
      ),
      ''
    ) || ')'
  ) as who,
  case when coalesce(s.backend_type, 'client backend') = 'client backend' then s.pid end as pid,
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
  and (c.relname in ('notifications', 'stream_tickets', 'topic_subscriptions') or c.relname like 'tidings\_%')
order by l.mode in ('AccessShareLock', 'RowShareLock'), s.xact_start
limit 1
