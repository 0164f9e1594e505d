-- Replaces incarnation.sql for a role that may not use tidings_incarnation. Crash
-- recovery resets the server's statistics.
select
  ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,
  (select stats_reset from pg_stat_bgwriter) as since
