-- Voids floors of transactions that have not begun yet. A dump brought them from a
-- copy of this cluster, which has the same system identifier and was further: once
-- this one gets there, they would hide rows that are unsent.
update :"schema".tidings_drained
set xid = '0'
where xid > pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
