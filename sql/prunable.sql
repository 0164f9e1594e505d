-- The number of rows that tidings_prune_batch() would remove: those sent long ago, and
-- those that have expired.
--
-- $1 seconds that rows are kept after they were sent. The conditions are those of
-- V10__prune.sql. Reads the whole table.
select
  count(*) filter (where was_sent) as sent,
  count(*) filter (where not was_sent) as expired
from (
  select
    created_at < now() - make_interval(secs => $1::float8)
    and coalesce(sent_at < now() - make_interval(secs => $1::float8), false) as was_sent,
    created_at < now() - interval '1 hour'
    and coalesce(expires_at < now() - interval '1 hour', false) as has_expired
  from :"schema".notifications
  where xid < pg_snapshot_xmax(pg_current_snapshot())
) as kept
where was_sent or has_expired
