-- The first rows, of all users, that are new since a position without open transactions.
--
-- The same as tail_page.sql for the usual position, in two thirds of the time: a statement
-- that runs every few milliseconds costs mostly the start of its plan.
--
-- $1 and $2 as in tail_head.sql. $3 floor, $4 maximum number of rows, $5 bytes of text
-- after which texts are left out. For the rest, see there.
select
  s.snapshot, s.inserted, s.flushed, s.rings_since, s.changed,
  null::xid8 as begun, n.xid, n.id, n.user_id, n.topic, n.event, n.ref, n.created_at,
  n.seconds_left, n.beyond,
  case when not n.beyond and octet_length(n.text) <= 1048576 then n.text end as text
from (
  :head
) as s
left join lateral (
  select
    :columns,
    f.user_id,
    f.topic,
    coalesce(
      sum(octet_length(f.text)) over (
        order by f.xid, f.id rows between unbounded preceding and 1 preceding
      ) >= $5::bigint,
      false
    ) as beyond
  from (
    select *
    from :"schema".notifications
    where xid >= $3 and xid < pg_snapshot_xmax(pg_current_snapshot())
    order by xid, id
    limit $4
  ) as f
) as n on true
order by n.xid, n.id
