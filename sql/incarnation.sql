-- The incarnation of the server: what a failover or a crash changes.
--
-- The timeline comes from the name of the write-ahead log's current file:
-- pg_control_checkpoint() is stale for minutes after a promotion. A standby has no
-- current file. `since` is null after a crash, until a bridge has begun the next
-- incarnation (begin_incarnation.sql).
select
  ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,
  (select since from :"schema".tidings_incarnation where single) as since
