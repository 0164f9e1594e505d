-- Rows that returning clients have received but that aren't marked: their connections
-- broke before the rows had settled, or a crash lost the marks.
--
-- For each client: $1 the user, $2 a row that was sent to it, $3 and $4 the key below
-- which its rows are searched, newest first. For each open transaction of a client's
-- position: $5 the client's number (from 1), $6 the transaction, $7 the last id read of
-- it. $8 is the cluster's system identifier, $9 the maximum number of rows examined per
-- client.
--
-- Returns one row for each client that was sent a row of the user: `unmarked` are ids,
-- `xid` and `id` the key to continue from if there may be more. A position alone
-- doesn't say which user it belongs to: a client that returns with another user's id
-- has received nothing of this one.
--
-- Not returned: rows that were not delivered although the position is past them
-- (expired, or undeliverable), and reopened rows, whose mark the application removed so
-- that they are delivered again. A row was not reopened if no transaction has updated
-- it, or if it is newer than the last transaction that reopened any row
-- (V9__drained.sql), provided that the trigger that records these fires in every
-- session.
with
  here as materialized (
    select
      incarnation.timeline,
      incarnation.since,
      pg_snapshot_xmax(pg_current_snapshot()) as xmax,
      (:guarded) as guarded,
      (
        select r.xid
        from :"schema".tidings_reopened as r
        where r.xid < pg_snapshot_xmax(pg_current_snapshot())
        order by r.xid desc
        limit 1
      ) as reopened
    from (:incarnation) as incarnation
  )
select here.timeline, here.since, client.number, found.unmarked, found.xid, found.id
from here
cross join
  unnest($1::text[], $2::bigint[], $3::xid8[], $4::bigint[])
  with ordinality as client (user_id, row, xid, id, number)
cross join lateral (
  select
    array_agg(passed.id) filter (where passed.unmarked) as unmarked,
    case when count(*) = $9 then (array_agg(passed.xid order by passed.xid, passed.id))[1] end as xid,
    case when count(*) = $9 then (array_agg(passed.id order by passed.xid, passed.id))[1] end as id
  from (
    select
      n.xid, n.id,
      n.sent_at is null
      and (n.expires_at is null or n.expires_at > now())
      and octet_length(n.text) <= 1048576
      and (n.event is null or octet_length(n.event) between 1 and 100 and n.event !~ '[\r\n]')
      and (n.xmin = n.xid::xid or here.guarded and (here.reopened is null or n.xid > here.reopened))
      and not exists (
        select
        from unnest($5::bigint[], $6::xid8[], $7::bigint[]) as o (number, xid, read)
        where o.number = client.number and o.xid = n.xid and n.id > o.read
      ) as unmarked
    from :"schema".notifications as n
    where
      n.user_id = client.user_id
      and (n.xid, n.id) < (client.xid, client.id)
      and n.xid >= coalesce(
        (
          select d.xid
          from :"schema".tidings_drained as d
          where
            d.user_id = client.user_id
            and d.system_identifier = $8
            and d.xid <= here.xmax
            and here.guarded
            and (here.reopened is null or here.reopened < d.xid)
        ),
        '0'
      )
    order by n.user_id desc, n.xid desc, n.id desc
    limit $9
  ) as passed
) as found
where exists (
  select
  from :"schema".notifications as own
  where own.id = client.row and own.user_id = client.user_id
)
