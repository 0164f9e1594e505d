-- One page of the disconnections that were recorded since a position
-- (V13__disconnect_everyone.sql).
--
-- $1 floor, null to begin at the present; $2 open transactions (ascending), $3 the last
-- id read of each, $4 maximum number of rows. Always returns a row, because it carries
-- the snapshot of this read; its key is null if there are no disconnections. `timeline`
-- and `since` identify the server's incarnation in which it was read (incarnation.sql),
-- `inserted` and `flushed` how much of what it sees is on disk. `clock` is the server's
-- time.
select
  pg_current_snapshot() as snapshot,
  here.timeline,
  here.since,
  pg_current_wal_insert_lsn() as inserted,
  pg_current_wal_flush_lsn() as flushed,
  clock_timestamp() as clock,
  d.xid,
  d.id,
  d.user_id,
  d.ticket
from (:incarnation) as here
left join :"schema".tidings_disconnections_page($1::xid8, $2::xid8[], $3::bigint[], $4::int) as d
  on true
order by d.xid, d.id
