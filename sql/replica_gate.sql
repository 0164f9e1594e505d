-- Whether a replica has replayed all that a snapshot of the primary shows. Executed before
-- the page and in the same session, as a statement of its own: within one statement, the
-- page's snapshot would be taken first.
--
-- $1 the position up to which the primary had written its log when, or after, the snapshot
-- was taken. $2 the primary's system identifier, and its incarnation: $3 timeline, $4
-- since.
--
-- `same` says whether the replica follows that primary: a row that was written there
-- (record_history.sql) has arrived. It also tells a replica that still follows a former
-- primary, whose log is of the same length, and one of another branch with an equal
-- timeline. A promoted replica is no longer in recovery.
select
  pg_is_in_recovery() as is_standby,
  control.system_identifier = $2
    and recovery.min_recovery_end_timeline <= $3
    and exists (
      select
      from :"schema".tidings_histories
      where system_identifier = $2 and timeline = $3 and since = $4
    )
    and not exists (
      select from :"schema".tidings_histories where system_identifier = $2 and timeline > $3
    ) as same,
  coalesce(pg_last_wal_replay_lsn() >= $1, false) as replayed,
  case when pg_is_in_recovery() then pg_is_wal_replay_paused() else false end as paused
from pg_control_system() as control, pg_control_recovery() as recovery
