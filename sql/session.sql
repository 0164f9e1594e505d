-- What kind of server this is, and which history of which cluster.
--
-- $1 the table's qualified name, $2 that of tidings_bell. The timeline comes from the name of the
-- write-ahead log's current file: pg_control_checkpoint() is stale for minutes
-- after a promotion. A standby has no current file. The beginning of the
-- statistics changes with every crash recovery, also that of a single backend,
-- and stays over a clean restart. `may_ring` is null without tidings_bell, and tells
-- else whether this role may say whether writers ring.
select
  pg_is_in_recovery() as standby,
  control.system_identifier,
  case when not pg_is_in_recovery() then ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end as timeline,
  (select stats_reset from pg_stat_bgwriter) as since,
  to_regclass($1)::oid as table_oid,
  has_sequence_privilege(to_regclass($2), 'update') as may_ring,
  current_user::text as role,
  pg_backend_pid() as backend
from pg_control_system() as control
