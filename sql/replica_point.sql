-- What a replica of this primary must have: the end of the log, the cluster's identifier,
-- and the incarnation that a bridge with replicas has recorded last, null if none has.
select
  pg_current_wal_insert_lsn() as inserted,
  control.system_identifier,
  latest.timeline,
  latest.since
from pg_control_system() as control
left join lateral (
  select h.timeline, h.since
  from :"schema".tidings_histories as h
  where h.system_identifier = control.system_identifier
  order by recorded_at desc
  limit 1
) as latest on true
