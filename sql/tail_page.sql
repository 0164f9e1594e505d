-- The first rows, of all users, that are new since a position.
--
-- They come in two parts with separate limits, so that a transaction with a million
-- rows doesn't delay later ones:
--
-- first, the rest of each transaction of which rows have already been read (it is in
-- the column `begun`): $3 those transactions (ascending), $4 the last id read of each,
-- $5 maximum number of rows and $6 bytes of text after which texts are left out, both
-- per transaction;
--
-- then everything else: $7 floor, $8 open transactions of which nothing has been read
-- (ascending), $9 maximum number of rows, $10 bytes of text.
--
-- Written so that all branches use the index (xid, id) at any table size, even with a
-- plan made while the table was empty; an OR of the conditions would not. A row at or
-- above xmax was forged or restored: it must not raise the floor. A row that is
-- `beyond` the bytes only indicates that there is more; so do rows beyond the row
-- limit. A text that violates the table's constraint is not transferred.
--
-- What precedes the rows is in tail_head.sql, with $1 and $2. A position without open transactions has a
-- query of its own (tail_page_past_floor.sql).
select
  s.snapshot, s.inserted, s.flushed, s.rings_since, s.changed,
  n.begun, n.xid, n.id, n.user_id, n.topic, n.event, n.ref, n.created_at, n.seconds_left, n.beyond,
  case when not n.beyond and octet_length(n.text) <= 1048576 then n.text end as text
from (
  :head
) as s
left join lateral (
  select
    f.begun,
    :columns,
    f.user_id,
    f.topic,
    coalesce(
      sum(octet_length(f.text)) over (
        partition by f.begun
        order by f.xid, f.id rows between unbounded preceding and 1 preceding
      ) >= case when f.begun is null then $10::bigint else $6::bigint end,
      false
    ) as beyond
  from (
    (
      select o.xid as begun, m.*
      from unnest($3::xid8[], $4::bigint[]) as o (xid, id)
      cross join lateral (
        select *
        from :"schema".notifications
        where xid = o.xid and id > o.id
        order by xid, id
        limit $5
      ) as m
    )
    union all
    (
      select null::xid8 as begun, m.*
      from unnest($8::xid8[]) as o (xid)
      cross join lateral (
        select *
        from :"schema".notifications
        where xid = o.xid and id > 0
        order by xid, id
        limit $9
      ) as m
      limit $9
    )
    union all
    (
      select null::xid8 as begun, m.*
      from :"schema".notifications as m
      where xid >= $7 and xid < pg_snapshot_xmax(pg_current_snapshot())
      order by xid, id
      limit $9
    )
  ) as f
) as n on true
-- Null comes last.
order by n.begun, n.xid, n.id
