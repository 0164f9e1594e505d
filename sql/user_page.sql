-- The first rows of one user that are new since a position: resume, catch-up.
--
-- $1 floor, $2 open transactions (ascending), $3 the last id read of each, $4 maximum
-- number of rows, $5 bytes of text after which texts are left out, $6 user.
--
-- Uses the index (user_id, xid, id), in the form that tail_page.sql explains; `beyond`
-- and the omitted texts are as there.
--
-- `pruned` is the newest transaction of which rows were removed, if any were.
--
-- `has_topics` says whether this page may be incomplete: the user has memberships, or there
-- are new rows for everyone (topic_page.sql).
with
  s as materialized (
    select
      pg_current_snapshot() as snapshot,
      here.timeline,
      here.since,
      (select :"schema".tidings_pruned_through()) as pruned,
      exists (select from (:memberships) as joined)
        or exists (
          select
          from :"schema".notifications
          where topic = '*' and xid >= least($1, ($2::xid8[])[1])
        ) as has_topics
    from (:incarnation) as here
  )
select
  s.snapshot, s.timeline, s.since, s.pruned, s.has_topics, null::xid8 as top, n.xid, n.id, n.event, n.ref, n.created_at, n.seconds_left, null::xid8 as begun, n.beyond,
  case when not n.beyond and octet_length(n.text) <= 1048576 then n.text end as text
from s
left join lateral (
  select
    :columns,
    coalesce(
      sum(octet_length(f.text)) over (
        order by f.xid, f.id rows between unbounded preceding and 1 preceding
      ) >= $5,
      false
    ) as beyond
  from (
    (
      select m.*
      from unnest($2::xid8[], $3::bigint[]) as o (xid, id)
      cross join lateral (
        select *
        from :"schema".notifications
        where user_id = $6 and xid = o.xid and id > o.id
        order by user_id, xid, id
        limit $4
      ) as m
      limit $4
    )
    union all
    (
      select *
      from :"schema".notifications
      where user_id = $6 and xid >= $1 and xid < pg_snapshot_xmax(pg_current_snapshot())
      order by user_id, xid, id
      limit $4
    )
  ) as f
) as n on true
order by n.xid, n.id
limit $4
