-- The first rows, of all users, that are new since a position.
--
-- $1 floor, $2 open transactions (ascending), $3 the last id read of each,
-- $4 rows at most, $5 bytes of text after which texts are left out.
--
-- Written so that both arms stay on the index (xid, id) at any table size and
-- with a plan that was made while the table was empty; an OR of the two
-- conditions does not. A row at or above xmax was forged or restored: it must
-- not lift the floor. A row whose text is null lies beyond the page and only
-- tells that there is more.
--
-- `inserted` and `flushed` tell how much of what the page sees is on disk, and
-- `rings_since` whether writers ring, after the snapshot was taken (fall_asleep.sql).
select
  s.snapshot, s.inserted, s.flushed, s.rings_since,
  n.xid, n.id, n.user_id, n.event, n.created_at, n.seconds_left,
  case when n.bytes_before is null or n.bytes_before < $5 then n.text end as text
from (
  select
    pg_current_snapshot() as snapshot,
    pg_current_wal_insert_lsn() as inserted,
    pg_current_wal_flush_lsn() as flushed,
    pg_sequence_last_value(to_regclass(format('%I.tidings_bell', :'schema'))) as rings_since
) as s
left join lateral (
  select
    f.xid, f.id, f.user_id, f.event, f.text,
    to_char(f.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
    -- Not the difference of the two: one of them may be infinite.
    extract(epoch from f.expires_at)::float8 - extract(epoch from clock_timestamp())::float8
      as seconds_left,
    sum(octet_length(f.text)) over (
      order by f.xid, f.id rows between unbounded preceding and 1 preceding
    ) as bytes_before
  from (
    (
      select m.*
      from unnest($2::xid8[], $3::bigint[]) as o (xid, id)
      cross join lateral (
        select *
        from :"schema".notifications
        where xid = o.xid and id > o.id
        order by xid, id
        limit $4
      ) as m
      limit $4
    )
    union all
    (
      select *
      from :"schema".notifications
      where xid >= $1 and xid < pg_snapshot_xmax(pg_current_snapshot())
      order by xid, id
      limit $4
    )
  ) as f
) as n on true
order by n.xid, n.id
limit $4
