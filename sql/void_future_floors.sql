-- Deletes floors of transactions that have not begun yet. A dump brought them from a
-- copy of this cluster that has the same system identifier and was further ahead: once
-- this one gets there, they would hide unsent rows.
update :"schema".tidings_drained
set xid = '0'
where xid > pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
