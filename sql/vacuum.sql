-- Whether autovacuum keeps up with our tables.
--
-- $1 schema. `waits_for` is the number of dead rows at which it runs, from the table's
-- own settings or else the server's. TOAST tables and partitions are not covered.
select
  format('%I.%I', nspname, relname) as "table",
  coalesce(pg_stat_get_dead_tuples(c.oid), 0) as dead,
  least(
    coalesce(o.threshold, current_setting('autovacuum_vacuum_threshold')::float8)
    + coalesce(o.scale, current_setting('autovacuum_vacuum_scale_factor')::float8)
    * greatest(reltuples, 0),
    -- From PostgreSQL 18 on.
    nullif(current_setting('autovacuum_vacuum_max_threshold', true)::float8, -1)
  )::float8 as waits_for,
  current_setting('autovacuum')::bool and current_setting('track_counts')::bool as server_on,
  coalesce(o.enabled, true) as table_on,
  age(relfrozenxid)::bigint as age,
  current_setting('autovacuum_freeze_max_age')::bigint as freeze_age
from pg_class as c
join pg_namespace as n on n.oid = relnamespace
cross join lateral (
  select
    max(option_value) filter (where option_name = 'autovacuum_vacuum_threshold')::float8
      as threshold,
    max(option_value) filter (where option_name = 'autovacuum_vacuum_scale_factor')::float8
      as scale,
    bool_and(option_value::bool) filter (where option_name = 'autovacuum_enabled') as enabled
  from pg_options_to_table(reloptions)
  -- The values of other options aren't booleans.
  where
    option_name in (
      'autovacuum_vacuum_threshold', 'autovacuum_vacuum_scale_factor', 'autovacuum_enabled'
    )
) as o
where
  nspname = $1
  and relkind = 'r'
  and (relname in ('notifications', 'stream_tickets', 'topic_subscriptions') or relname like 'tidings\_%')
order by relname
