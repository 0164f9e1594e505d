-- Which streams were to end since a snapshot.
--
-- $1 the snapshot of the reading before. Always a row, for the snapshot of this
-- one; without a user if there is none. `timeline` and `since` tell in which
-- incarnation of the server it was read (session.sql). `clock` is what the time
-- was there.
select
  pg_current_snapshot()::text as snapshot,
  ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int as timeline,
  (select stats_reset from pg_stat_bgwriter) as since,
  clock_timestamp() as clock,
  d.user_id,
  d.ticket
from (select) as one
left join :"schema".tidings_disconnections_since($1::text::pg_snapshot) as d on true
