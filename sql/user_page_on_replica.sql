-- The same as user_page.sql on a replica: the rows that the primary would have returned for
-- an earlier snapshot, without has_topics for those who joined a topic since.
--
-- $1 to $6 as there. The snapshot, of the primary: $7 its xmax, $8 the transactions that
-- were running. The replica must have replayed all that the snapshot shows before this
-- statement begins (replica_gate.sql). What it has replayed since is left out, so this is
-- the page of that snapshot. The replica's own snapshot shows transactions in the order in
-- which they committed, and so means something else.
--
-- What was removed since is missing, and `pruned` says so, as on the primary.
with
  s as materialized (
    select
      (select :"schema".tidings_pruned_through()) as pruned,
      exists (select from (:memberships) as joined)
        or exists (
          select
          from :"schema".notifications
          where topic = '*' and xid >= least($1, ($2::xid8[])[1])
        ) as has_topics
  )
select
  s.pruned, s.has_topics, null::xid8 as top, n.xid, n.id, n.event, n.ref, n.created_at, n.seconds_left, null::xid8 as begun, n.beyond,
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
      where o.xid < $7 and o.xid <> all ($8::xid8[])
      limit $4
    )
    union all
    (
      select *
      from :"schema".notifications
      where user_id = $6 and xid >= $1 and xid < $7 and xid <> all ($8::xid8[])
      order by user_id, xid, id
      limit $4
    )
  ) as f
) as n on true
order by n.xid, n.id
limit $4
