-- The bridges that are connected.
select
  format('%s at %s', version, address) as bridge,
  state,
  connections
from :"schema".tidings_bridges
order by started_at
