-- Whether the connected bridges are ready, according to their last reports.
select
  address,
  readiness,
  reason,
  extract(epoch from clock_timestamp() - last_seen)::float8 as silent
from :"schema".tidings_bridges
order by started_at, bridge
