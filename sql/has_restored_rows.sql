-- Whether there are rows with transaction ids that this cluster has not assigned yet.
select exists (
  select
  from :"schema".notifications
  where xid >= pg_snapshot_xmax(pg_current_snapshot())
)
