-- How full the server's notification queue is (0 to 1), and which session has the
-- oldest transaction of the cluster. A listening session that stays in a transaction
-- keeps the queue from shrinking, and Postgres doesn't show which sessions listen.
select
  pg_notification_queue_usage() as usage,
  t.holder,
  t.fix
from (select) as one
left join lateral (
  select
    format(
      'backend %s (%s, %s in %s, for %s s)',
      pid, usename, state, datname, floor(extract(epoch from clock_timestamp() - xact_start))
    ) as holder,
    format('select pg_terminate_backend(%s);', pid) as fix
  from pg_stat_activity
  where pid <> pg_backend_pid() and xact_start is not null and backend_type = 'client backend'
  order by xact_start
  limit 1
) as t on true
