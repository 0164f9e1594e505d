-- Whether this role is a superuser, and whether it is a member of the history's owner.
--
-- $1 schema.
select
  rolname::text as role,
  rolsuper as is_superuser,
  coalesce(
    (
      select pg_has_role(relowner, 'member')
      from pg_class
      where
        relname = 'tidings_schema_history'
        and relnamespace = (select oid from pg_namespace where nspname = $1)
    ),
    false
  ) as is_owner
from pg_roles
where rolname = current_user
