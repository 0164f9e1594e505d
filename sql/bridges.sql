-- The connected bridges.
select
  version,
  address,
  host(client_address) as client_address,
  state,
  connections,
  extract(epoch from clock_timestamp() - started_at)::float8 as up,
  extract(epoch from clock_timestamp() - last_seen)::float8 as silent
from :"schema".tidings_bridges
order by started_at
