-- The number of rows that tidings_prune_batch() would remove: those sent long ago, those
-- for topics that were created long ago, and others that have expired.
--
-- $1 seconds that rows are kept after they were sent, $2 seconds that rows for topics are
-- kept. The conditions are those of V30__prune_topics.sql. Reads the whole table.
select
  count(*) filter (where was_sent) as sent,
  count(*) filter (where is_old_topic) as topics,
  count(*) filter (where not was_sent and not is_old_topic) as expired
from (
  select
    topic is null
    and created_at < now() - make_interval(secs => $1::float8)
    and coalesce(sent_at < now() - make_interval(secs => $1::float8), false) as was_sent,
    topic is not null and created_at < now() - make_interval(secs => $2::float8) as is_old_topic,
    created_at < now() - interval '1 hour'
    and coalesce(expires_at < now() - interval '1 hour', false) as has_expired
  from :"schema".notifications
  where xid < pg_snapshot_xmax(pg_current_snapshot())
) as kept
where was_sent or is_old_topic or has_expired
