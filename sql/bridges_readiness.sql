-- Whether the bridges that are connected are ready, by their own last report.
select
  address,
  readiness,
  reason,
  extract(epoch from clock_timestamp() - last_seen)::float8 as silent
from :"schema".tidings_bridges
order by started_at, bridge
