-- How many rows tidings_prune_batch() would remove: such as were sent long ago,
-- and others, which have expired.
--
-- $1 for how many seconds rows stay after they were sent. The conditions are those
-- of V10__prune.sql. It reads the whole table.
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
