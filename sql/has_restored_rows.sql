-- Whether rows carry transaction ids that this cluster has not handed out yet.
select exists (
  select
  from :"schema".notifications
  where xid >= pg_snapshot_xmax(pg_current_snapshot())
)
