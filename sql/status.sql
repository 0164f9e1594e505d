-- The current state in one row: the server, the table, the doorbell, and the longest
-- transaction.
--
-- $1 the table's qualified name, $2 that of tidings_bell. The cost doesn't depend on
-- the table's size. Values that this role may not see, or that don't exist, are null.
select
  current_setting('server_version') as server,
  pg_is_in_recovery() as standby,
  extract(epoch from clock_timestamp() - pg_postmaster_start_time())::float8 as up,
  current_user::text as role,
  -- Negative: never analyzed.
  case when c.reltuples >= 0 then c.reltuples::bigint end as rows,
  pg_total_relation_size(c.oid) as bytes,
  pg_indexes_size(c.oid) as index_bytes,
  pg_stat_get_dead_tuples(c.oid) as dead,
  extract(
    epoch from clock_timestamp() - greatest(
      pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)
    )
  )::float8 as vacuumed,
  case
    when has_sequence_privilege(t.bell, 'select') then pg_sequence_last_value(t.bell) is not null
  end as rings,
  x.who as longest,
  x.seconds as longest_seconds
from (select to_regclass($1) as oid, to_regclass($2) as bell) as t
left join pg_class as c on c.oid = t.oid
left join lateral (
  select
    format('backend %s (%s, %s)', pid, usename, state) as who,
    extract(epoch from clock_timestamp() - xact_start)::float8 as seconds
  from pg_stat_activity
  where
    datname = current_database()
    and pid <> pg_backend_pid()
    and backend_type = 'client backend'
  order by xact_start
  limit 1
) as x on x.seconds is not null
