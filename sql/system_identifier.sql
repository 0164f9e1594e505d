-- The identifier of this cluster, assigned by initdb.
select system_identifier from pg_control_system()
