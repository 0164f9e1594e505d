-- Removes one batch of rows that are past their retention (V30__prune_topics.sql). Returns no
-- row if another session is removing rows right now.
--
-- $1 seconds that rows are kept after they were sent, $2 the row after which to begin, $3
-- seconds that rows for topics are kept after they were created.
-- `seconds_left` is an upper bound: rows that remain to be examined are at most this
-- much too young to be removed.
select
  removed,
  looked_to,
  greatest(
    extract(epoch from now()) - $1::float8 - extract(epoch from looked_to_created_at), 0
  )::float8 as seconds_left
from :"schema".tidings_prune_batch(
  sent_before => make_interval(secs => $1::float8),
  after => $2,
  topics_before => make_interval(secs => $3::float8)
)
