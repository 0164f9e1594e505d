-- Whether this server is a standby, and which cluster it belongs to.
--
-- $1 the table's qualified name, $2 that of tidings_bell, $3 that of
-- tidings_incarnation, which must not be read here: a standby can't read an unlogged
-- table. `may_ring` is null without tidings_bell, otherwise whether this role may set
-- whether writers ring. `may_notice` is the same for tidings_incarnation.
select
  pg_is_in_recovery() as standby,
  control.system_identifier,
  to_regclass($1)::oid as table_oid,
  (select oid from pg_database where datname = current_database()) as database_oid,
  has_sequence_privilege(to_regclass($2), 'update') as may_ring,
  has_table_privilege(to_regclass($3), 'select') and has_table_privilege(to_regclass($3), 'insert')
    as may_notice,
  current_user::text as role,
  pg_backend_pid() as backend
from pg_control_system() as control
