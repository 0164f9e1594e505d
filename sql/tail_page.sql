-- The first rows, of all users, that are new since a position.
--
-- They come in two parts with separate limits, so that a transaction with a million
-- rows doesn't delay later ones:
--
-- first, the rest of each transaction of which rows have already been read (it is in
-- the column `begun`): $1 those transactions (ascending), $2 the last id read of each,
-- $3 maximum number of rows and $4 bytes of text after which texts are left out, both
-- per transaction;
--
-- then everything else: $5 floor, $6 open transactions of which nothing has been read
-- (ascending), $7 maximum number of rows, $8 bytes of text.
--
-- Written so that all branches use the index (xid, id) at any table size, even with a
-- plan made while the table was empty; an OR of the conditions would not. A row at or
-- above xmax was forged or restored: it must not raise the floor. A row that is
-- `beyond` the bytes only indicates that there is more; so do rows beyond the row
-- limit. A text that violates the table's constraint is not transferred.
--
-- `inserted` and `flushed` say how much of what the page sees is on disk, and
-- `rings_since` whether writers ring, read after the snapshot was taken
-- (fall_asleep.sql).
--
-- `changed` says whether memberships have changed since an earlier snapshot: $9 its xmax,
-- $10 the transactions that were running. Then the rows must not be delivered before the
-- changes, which have to be read in the same snapshot (membership_changes.sql).
select
  s.snapshot, s.inserted, s.flushed, s.rings_since, s.changed,
  n.begun, n.xid, n.id, n.user_id, n.topic, n.event, n.ref, n.created_at, n.seconds_left, n.beyond,
  case when not n.beyond and octet_length(n.text) <= 1048576 then n.text end as text
from (
  select
    pg_current_snapshot() as snapshot,
    pg_current_wal_insert_lsn() as inserted,
    pg_current_wal_flush_lsn() as flushed,
    pg_sequence_last_value(to_regclass(format('%I.tidings_bell', :'schema'))) as rings_since,
    exists (
      select
      from :"schema".tidings_membership_changes
      where xid >= $9 and xid < pg_snapshot_xmax(pg_current_snapshot())
    )
    or exists (
      select
      from unnest($10::xid8[]) as o (xid)
      cross join lateral (
        select from :"schema".tidings_membership_changes where xid = o.xid limit 1
      ) as late
    ) as changed
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
      ) >= case when f.begun is null then $8::bigint else $4::bigint end,
      false
    ) as beyond
  from (
    (
      select o.xid as begun, m.*
      from unnest($1::xid8[], $2::bigint[]) as o (xid, id)
      cross join lateral (
        select *
        from :"schema".notifications
        where xid = o.xid and id > o.id
        order by xid, id
        limit $3
      ) as m
    )
    union all
    (
      select null::xid8 as begun, m.*
      from unnest($6::xid8[]) as o (xid)
      cross join lateral (
        select *
        from :"schema".notifications
        where xid = o.xid and id > 0
        order by xid, id
        limit $7
      ) as m
      limit $7
    )
    union all
    (
      select null::xid8 as begun, m.*
      from :"schema".notifications as m
      where xid >= $5 and xid < pg_snapshot_xmax(pg_current_snapshot())
      order by xid, id
      limit $7
    )
  ) as f
) as n on true
-- Null comes last.
order by n.begun, n.xid, n.id
