-- The incarnation of the server (session.sql). A standby has no current log.
select
  ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,
  (select stats_reset from pg_stat_bgwriter) as since
