-- The role that owns what migrations create in a schema: the owner of the existing
-- objects, or else the group that roles.sql creates for it, if it exists.
--
-- $1 schema. `may_act`: whether this session may act as that owner. From PostgreSQL 16
-- on that is a separate privilege; before, membership was enough.
--
-- `is_trusted`: any role with CREATE on the schema can create a table with the
-- history's name and would own everything created afterwards. Only tidings_owner, the
-- role of this session, the owner of the schema and superusers are trusted.
with
  place (oid, owner) as (
    select
      n.oid,
      -- From PostgreSQL 15 on, public belongs to the owner of the database.
      case
        when n.nspowner = to_regrole('pg_database_owner')
        then (select datdba from pg_database where datname = current_database())
        else n.nspowner
      end
    from pg_namespace as n
    where n.nspname = $1
  ),
  history (owner) as (
    select relowner
    from pg_class
    where relname = 'tidings_schema_history' and relnamespace = (select oid from place)
  )
select
  owner.rolname::text as owner,
  (select owner from history) is not null as is_there,
  pg_has_role(
    owner.oid,
    case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end
  ) as may_act,
  (
    owner.rolsuper
    or owner.rolname in ('tidings_owner', current_user, session_user)
    or owner.oid = (select owner from place)
  ) is true as is_trusted,
  session_user::text as role,
  pg_get_userbyid((select owner from place))::text as schema_owner
from pg_roles as owner
where owner.oid = coalesce((select owner from history), to_regrole('tidings_owner'))
