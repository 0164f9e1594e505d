-- Removes one batch of rows that have had their time (V10__prune.sql). No row:
-- somebody else is removing some just now.
--
-- $1 for how many seconds rows stay after they were sent, $2 the row after which
-- it begins. `seconds_left` is how much younger the rows are that are still to be
-- looked at, at the most.
select
  removed,
  looked_to,
  greatest(
    extract(epoch from now()) - $1::float8 - extract(epoch from looked_to_created_at), 0
  )::float8 as seconds_left
from :"schema".tidings_prune_batch(make_interval(secs => $1::float8), $2)
