-- Gives rows that were restored from another cluster to this transaction.
update :"schema".notifications
set xid = pg_current_xact_id()
where xid >= pg_snapshot_xmax(pg_current_snapshot())
