-- The snapshot of a page of the tail, and what is read with it.
--
-- `inserted` and `flushed` say how much of what the page sees is on disk, and
-- `rings_since` whether writers ring, read after the snapshot was taken
-- (fall_asleep.sql).
--
-- `changed` says whether memberships have changed since an earlier snapshot: $1 its xmax,
-- $2 the transactions that were running. Then the rows must not be delivered before the
-- changes, which have to be read in the same snapshot (membership_changes.sql).
select
  pg_current_snapshot() as snapshot,
  pg_current_wal_insert_lsn() as inserted,
  pg_current_wal_flush_lsn() as flushed,
  pg_sequence_last_value(to_regclass(format('%I.tidings_bell', :'schema'))) as rings_since,
  exists (
    select
    from :"schema".tidings_membership_changes
    where xid >= $1 and xid < pg_snapshot_xmax(pg_current_snapshot())
  )
  or exists (
    select
    from unnest($2::xid8[]) as o (xid)
    cross join lateral (
      select from :"schema".tidings_membership_changes where xid = o.xid limit 1
    ) as late
  ) as changed
