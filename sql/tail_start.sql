-- Where a bridge starts: it has seen everything that is visible now. One statement, so
-- that the row and the snapshot belong together.
--
-- `checkpointed` is the next transaction id as of the last checkpoint, which is on
-- disk: recovery never goes back before it.
select
  pg_current_snapshot() as snapshot,
  (
    select xid
    from :"schema".notifications
    where xid < pg_snapshot_xmax(pg_current_snapshot())
    order by xid desc
    limit 1
  ) as top,
  (
    split_part(next_xid, ':', 1)::bigint << 32 | split_part(next_xid, ':', 2)::bigint
  )::text::xid8 as checkpointed,
  exists (select from :"schema".topic_subscriptions)
    or exists (select from :"schema".notifications where topic is not null) as has_topics
from pg_control_checkpoint()
