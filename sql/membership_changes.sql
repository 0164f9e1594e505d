-- Memberships that changed since an earlier look, as they are now.
--
-- $1 the snapshot of that look, $2 maximum number of changes, $3 the transaction and $4
-- the id of the last change that was read, null to begin. Changes and memberships are of
-- one snapshot, which must be that of the rows that are delivered by them. `joined` is the
-- membership's transaction: null if it has ended. Without a topic, or without a user, the
-- bridge has to read all memberships of that user, or everyone's, again.
select
  pg_current_snapshot() as snapshot,
  c.xid,
  c.id,
  c.user_id,
  c.topic,
  m.since,
  m.xid as joined
from (
  select d.xid, d.id, d.user_id, d.topic
  from :"schema".tidings_membership_changes as d
  where
    d.xid >= greatest(pg_snapshot_xmin($1::pg_snapshot), $3::xid8)
    -- A row that was restored from another cluster may lie in the future.
    and d.xid < pg_snapshot_xmax(pg_current_snapshot())
    and ($3 is null or (d.xid, d.id) > ($3, $4::bigint))
    and not pg_visible_in_snapshot(d.xid, $1)
  order by d.xid, d.id
  limit $2
) as c
left join lateral (
  select s.since, s.xid
  from :"schema".topic_subscriptions as s
  where s.user_id = c.user_id and s.topic = c.topic
  limit 1
) as m on true
order by c.xid, c.id
