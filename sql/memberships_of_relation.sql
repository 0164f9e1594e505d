-- The memberships of a user in a relation of the application (TIDINGS_MEMBERSHIPS).
-- Included by the variable `memberships`.
--
-- Its variables are those of memberships.sql, `relation`, and `own_user`: the user in the
-- type of the relation's column.
--
-- The same topic may occur more than once: the oldest membership counts. Whatever the
-- relation holds, no more rows are read and sorted than these. Everyone's topic is added
-- elsewhere.
--
-- There is no xid, so a position doesn't say whether its reader knew a membership.
select
  d.topic,
  case
    when pg_snapshot_xmax(d.since) <= pg_snapshot_xmax(pg_current_snapshot()) then d.since
  end as since,
  null::xid8 as xid
from (
  select distinct on (r.topic) r.topic, r.since
  from (
    select m.topic::text as topic, m.since
    from :relation as m
    where
      m.user_id = :own_user
      and m.topic is not null
      and m.topic <> '*'
      and (:asked is null or m.topic::text = any (:asked))
    limit 10 * :most
  ) as r
  order by r.topic, pg_snapshot_xmin(r.since) nulls first
) as d
order by d.topic
limit :most
