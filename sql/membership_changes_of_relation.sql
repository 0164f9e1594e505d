-- The same as membership_changes.sql if memberships are those of a relation of the
-- application: each change has the bridge read all memberships of its user again.
--
-- $1 to $3 as there.
select null::xid8 as xid, c.user_id, null::text as topic, null::pg_snapshot as since, null::xid8 as joined
from (
  (
    select late.*
    from unnest($2::xid8[]) as o (xid)
    cross join lateral (
      select d.user_id
      from :"schema".tidings_membership_changes as d
      where d.xid = o.xid
      order by d.xid, d.id
      limit $3
    ) as late
    limit $3
  )
  union
  (
    select d.user_id
    from :"schema".tidings_membership_changes as d
    where d.xid >= $1 and d.xid < pg_snapshot_xmax(pg_current_snapshot())
    order by d.xid, d.id
    limit $3
  )
) as c
limit $3
