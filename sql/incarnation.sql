-- The incarnation of the server, which changes with a failover or a crash. Included by
-- the variable `incarnation`.
--
-- The timeline is taken from the name of the current write-ahead log file:
-- pg_control_checkpoint() is stale for minutes after a promotion. A standby has no
-- current file. `since` is null after a crash until a bridge has begun the next
-- incarnation (begin_incarnation.sql).
select
  ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,
  (select since from :"schema".tidings_incarnation where single) as since
