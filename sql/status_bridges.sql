-- The bridges that are connected, as far as their sessions show it.
select
  format('%s sessions of %s', count(*), usename) as bridge,
  null::text as state,
  null::bigint as connections
from pg_stat_activity
where
  datname = current_database()
  and application_name like 'tidings%'
  and pid <> pg_backend_pid()
group by usename
order by usename
