-- Assigns rows that were restored from another cluster to this transaction, a batch at
-- a time. Records of pruning from that cluster are meaningless here.
with
  forgotten as (
    update :"schema".tidings_pruned
    set xid = '0'
    where xid >= pg_snapshot_xmax(pg_current_snapshot())
  )
update :"schema".notifications
set xid = pg_current_xact_id()
where
  id in (
    select id
    from :"schema".notifications
    where xid >= pg_snapshot_xmax(pg_current_snapshot())
    order by xid, id
    limit 10000
  )
