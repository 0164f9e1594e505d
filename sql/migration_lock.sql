-- Tries to acquire the migration lock, and returns its holder.
--
-- $1 the lock's key. A 64-bit advisory lock appears in pg_locks as two halves, with
-- objsubid 1. Any role can take it; only migrations depend on it. Details of the holder
-- that this role may not see are null; a prepared transaction has no `pid`.
select
  l.taken,
  h.pid,
  h.role,
  h.application,
  h.since,
  h.prepared
from (
  select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0)) as taken
  offset 0
) as l
left join lateral (
  select
    k.pid,
    coalesce(r.rolname, p.owner)::text as role,
    nullif(a.application_name, '') as application,
    to_char(
      coalesce(a.xact_start, a.backend_start, p.prepared) at time zone 'UTC',
      'YYYY-MM-DD HH24:MI:SS "UTC"'
    ) as since,
    p.gid as prepared
  from pg_catalog.pg_locks as k
  left join pg_catalog.pg_stat_activity as a on a.pid = k.pid
  left join pg_catalog.pg_roles as r on r.oid = a.usesysid
  -- A prepared transaction has no session but holds a lock on its own id.
  left join pg_catalog.pg_locks as own
    on
      k.pid is null
      and own.pid is null
      and own.locktype = 'transactionid'
      and own.virtualtransaction = k.virtualtransaction
  left join pg_catalog.pg_prepared_xacts as p on p.transaction = own.transactionid
  where
    not l.taken
    and k.locktype = 'advisory'
    and k.database = (select oid from pg_catalog.pg_database where datname = current_database())
    and k.objsubid = 1
    and (k.classid::bigint << 32 | k.objid::bigint) = pg_catalog.hashtextextended($1, 0)
    and k.granted
  limit 1
) as h on true
