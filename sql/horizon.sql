-- Sessions, slots and standbys that have kept VACUUM from removing dead rows of this
-- database for too long.
--
-- $1 seconds that a transaction may be open, $2 the number of transactions that a slot
-- or a standby may hold back (these have no time). `held` is the number of transactions
-- newer than the one held back. A row of kind unseen lists what this role may not see.
--
-- Only transactions that have an id or hold a snapshot count: a session that is idle in
-- a READ COMMITTED transaction and has written nothing holds nothing back. By its own
-- rules, neither does VACUUM itself.
select kind, what, seconds, held, fix
from (
  select
    'transaction' as kind,
    format('backend %s (%s, %s)', pid, usename, state) as what,
    extract(epoch from clock_timestamp() - xact_start)::float8 as seconds,
    age(coalesce(backend_xmin, backend_xid))::bigint as held,
    format('select pg_terminate_backend(%s);', pid) as fix
  from pg_stat_activity
  where
    datname = current_database()
    and pid <> pg_backend_pid()
    and backend_type = 'client backend'
    and coalesce(backend_xmin, backend_xid) is not null
    and extract(epoch from clock_timestamp() - xact_start) >= $1
  union all
  select
    'prepared',
    format('the prepared transaction %L (%s)', gid, owner),
    extract(epoch from clock_timestamp() - prepared)::float8,
    age(transaction)::bigint,
    format(
      'commit prepared %1$L; or rollback prepared %1$L; as its coordinator decided', gid
    )
  from pg_prepared_xacts
  where
    database = current_database() and extract(epoch from clock_timestamp() - prepared) >= $1
  union all
  select
    'slot',
    format(
      'the replication slot %s (%s)', slot_name, case when active then 'in use' else 'unused' end
    ),
    null,
    age(xmin)::bigint,
    format(
      'if its standby is gone: select pg_drop_replication_slot(%L); otherwise let the standby catch '
      'up, or set hot_standby_feedback = off there',
      slot_name
    )
  from pg_replication_slots
  where xmin is not null and age(xmin) > $2
  union all
  select
    'standby',
    format('the standby of backend %s (%s)', pid, application_name),
    null,
    age(backend_xmin)::bigint,
    'end the long query on the standby, or set hot_standby_feedback = off there'
  from pg_stat_activity
  where backend_type = 'walsender' and backend_xmin is not null and age(backend_xmin) > $2
  union all
  select
    'unseen',
    format(
      'how long the transactions of others are open: grant pg_read_all_stats to %I;', current_user
    ),
    null,
    null,
    null
  where not pg_has_role('pg_read_all_stats', 'usage')
) as holders
order by kind, seconds desc nulls last, held desc
