-- Whether this server can be used as a replica: what replica_gate.sql asks, one by one, for
-- a person. Parameters as there; without an incarnation ($3 and $4 are null), it isn't
-- compared.
--
-- `behind` is how many bytes of the log it has yet to replay.
select
  pg_is_in_recovery() as is_standby,
  control.system_identifier = $2 as is_of_cluster,
  $3::integer is null
    or exists (
      select
      from :"schema".tidings_histories
      where system_identifier = $2 and timeline = $3 and since = $4
    ) as is_of_history,
  case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end as is_paused,
  greatest(pg_wal_lsn_diff($1, pg_last_wal_replay_lsn()), 0)::bigint as behind
from pg_control_system() as control
