-- The first page for a user who connects without a position: unsent rows, and rows that
-- became visible since the connection was opened (another connection may have been sent
-- these in the meantime).
--
-- $1 user, $2 maximum number of rows, $3 bytes of text after which texts are left out. The
-- bridge's own position when the connection was opened: $4 floor, $5 open transactions
-- (ascending), $6 the last id read of each. $7 the cluster's system identifier, $8 how many
-- rows may be skipped before the bridge records a new floor.
--
-- `top` is the newest transaction of any row: together with the snapshot it determines up
-- to where everything counts as seen once this page has been read.
--
-- `has_topics` says whether this page is incomplete, because the user has memberships or
-- there are rows for everyone that the user may not have been sent. `c_floor` to `c_since`
-- are the user's cursor (V26__memberships.sql), null if there is none.
--
-- The scan begins at the first row that may qualify. Below `drained` nothing is unsent,
-- unless a newer transaction has changed that (V9__drained.sql), or the triggers that
-- would have recorded it may not have fired (V17__restamp_inserted.sql). `passed` is
-- the transaction of the row that follows the first $8 rows from there.
with
  drained as materialized (:drained),
  cursor as materialized (
    select floor, open, durable, timeline, since
    from :"schema".tidings_cursors
    where user_id = $1 and system_identifier = $7
  ),
  s as materialized (
    select
      pg_current_snapshot() as snapshot,
      here.timeline,
      here.since,
      (
        select xid
        from :"schema".notifications
        where xid < pg_snapshot_xmax(pg_current_snapshot())
        order by xid desc
        limit 1
      ) as top,
      (
        select xid
        from :"schema".notifications
        where
          user_id = $1
          and xid >= (select xid from drained)
          and xid < pg_snapshot_xmax(pg_current_snapshot())
        order by user_id, xid, id
        offset $8
        limit 1
      ) as passed,
      exists (select from (:memberships) as joined)
        or exists (
          select
          from :"schema".notifications
          where
            topic = '*'
            and xid >= least(
              $4,
              ($5::xid8[])[1],
              (select least(floor, durable, open[1]) from cursor)
            )
        ) as has_topics,
      cursor.floor as c_floor,
      coalesce(cursor.open, '{}') as c_open,
      cursor.durable as c_durable, cursor.timeline as c_timeline, cursor.since as c_since
    from (:incarnation) as here
    left join cursor on true
  )
select
  s.snapshot, s.timeline, s.since, null::xid8 as pruned, s.top, s.passed, s.has_topics,
  s.c_floor, s.c_open, s.c_durable, s.c_timeline, s.c_since,
  n.xid, n.id, n.event, n.ref, n.created_at, n.seconds_left, null::xid8 as begun, n.beyond,
  case when not n.beyond and octet_length(n.text) <= 1048576 then n.text end as text
from s
left join lateral (
  select
    :columns,
    coalesce(
      sum(octet_length(f.text)) over (
        order by f.xid, f.id rows between unbounded preceding and 1 preceding
      ) >= $3,
      false
    ) as beyond
  from (
    select *
    from :"schema".notifications
    where
      user_id = $1
      and xid >= least(
        (select xid from drained),
        $4,
        ($5::xid8[])[1]
      )
      and xid < pg_snapshot_xmax(pg_current_snapshot())
      and (
        (sent_at is null and (expires_at is null or expires_at > now()))
        or xid >= $4
        or exists (
          select
          from unnest($5::xid8[], $6::bigint[]) as o (xid, read)
          where o.xid = notifications.xid and notifications.id > o.read
        )
      )
    order by user_id, xid, id
    limit $2
  ) as f
) as n on true
order by n.xid, n.id
limit $2
