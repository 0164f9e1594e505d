-- Where a bridge begins: it has seen everything that is visible now.
-- One statement, so that the row and the snapshot belong together.
select
  pg_current_snapshot() as snapshot,
  (
    select xid
    from :"schema".notifications
    where xid < pg_snapshot_xmax(pg_current_snapshot())
    order by xid desc
    limit 1
  ) as top
