-- The oldest of the last rows of a user and of the user's topics, from which they are
-- replayed.
--
-- $1 user (null for none), $2 number of rows, $3 maximum number of topics, $4 the topics
-- that the client asked for (null for all), $5 topics that a token or ticket adds.
--
-- Reads only indexes, at most $2 entries of each topic.
with
  m as materialized (
    select topic, since, xid
    from (:memberships) as mine
    -- Otherwise it isn't known which rows are from before the membership.
    where since is not null
    union all
    select added.topic, null, null
    from (select unnest($5::text[]) union select '*') as added (topic)
    where $4::text[] is null or added.topic = any ($4)
  )
select k.xid, k.id
from (
  (
    select n.xid, n.id
    from :"schema".notifications as n
    where n.user_id = $1 and n.xid < pg_snapshot_xmax(pg_current_snapshot())
    order by n.user_id desc, n.xid desc, n.id desc
    limit $2
  )
  union
  (
    select t.xid, t.id
    from m
    cross join lateral (
      select n.xid, n.id
      from :"schema".notifications as n
      where
        n.topic = m.topic
        and n.topic is not null
        and n.xid >= coalesce(pg_snapshot_xmin(m.since), '0')
        and n.xid < pg_snapshot_xmax(pg_current_snapshot())
        and (n.xid = m.xid or not coalesce(pg_visible_in_snapshot(n.xid, m.since), false))
      order by n.topic desc, n.xid desc, n.id desc
      limit $2
    ) as t
  )
  order by xid desc, id desc
  limit $2
) as k
order by k.xid, k.id
limit 1
