-- Connected sessions of Tidings, existing groups, and whether this role owns the
-- schema; checked before all our objects are removed from it.
--
-- $1 schema. `groups` are the existing groups of roles.sql.
select
  (
    select count(*)
    from pg_stat_activity
    where
      datname = current_database()
      and application_name like 'tidings%'
      and pid <> pg_backend_pid()
  ) as sessions,
  array(
    select rolname::text
    from pg_roles
    where
      rolname in (
        'tidings_owner', 'tidings_bridge', 'tidings_writer', 'tidings_issuer', 'tidings_monitor'
      )
    order by rolname
  ) as groups,
  pg_has_role(session_user, nspowner, 'usage') as owns_schema
from pg_namespace
where nspname = $1
