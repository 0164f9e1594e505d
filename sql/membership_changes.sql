-- Memberships that changed since an earlier snapshot, as they are now.
--
-- $1 the snapshot's xmax, $2 the transactions that were running (ascending), $3 maximum
-- number of changes. Changes and memberships are of one snapshot, which must be that of
-- the rows that are delivered by them. `joined` is the membership's transaction: null if
-- it has ended. Without a topic, or without a user, the bridge has to read all memberships
-- of that user, or everyone's, again.
--
-- The snapshot is tested in the two parts that the index (xid, id) can find, as in
-- tail_page.sql.
select c.xid, c.user_id, c.topic, m.since, m.xid as joined
from (
  (
    select late.*
    from unnest($2::xid8[]) as o (xid)
    cross join lateral (
      select d.xid, d.id, d.user_id, d.topic
      from :"schema".tidings_membership_changes as d
      where d.xid = o.xid
      order by d.xid, d.id
      limit $3
    ) as late
    limit $3
  )
  union all
  (
    select d.xid, d.id, d.user_id, d.topic
    from :"schema".tidings_membership_changes as d
    -- A row that was restored from another cluster may lie in the future.
    where d.xid >= $1 and d.xid < pg_snapshot_xmax(pg_current_snapshot())
    order by d.xid, d.id
    limit $3
  )
) as c
left join lateral (
  select s.since, s.xid
  from :"schema".topic_subscriptions as s
  where s.user_id = c.user_id and s.topic = c.topic
  limit 1
) as m on true
order by c.xid, c.id
limit $3
