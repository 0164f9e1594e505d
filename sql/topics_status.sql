-- All topics in one row. `newest` is in seconds, null if no row is kept.
select
  count(*) as topics,
  coalesce(sum(subscribers), 0)::bigint as subscriptions,
  coalesce(sum(notifications), 0)::bigint as rows,
  extract(epoch from clock_timestamp() - max(newest))::float8 as newest
from :"schema".tidings_topics
