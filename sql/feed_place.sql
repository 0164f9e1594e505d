-- Which table this is among all: by this, messages of its bridges are told from others.
--
-- $1 the table's qualified name. `table_oid` is null if there is no such table.
select
  control.system_identifier,
  (select oid from pg_database where datname = current_database()) as database_oid,
  to_regclass($1)::oid as table_oid
from pg_control_system() as control
