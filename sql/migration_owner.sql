-- To whom belongs what migrations make in a schema: to the owner of what is
-- there, or else to the group that roles.sql makes for it, if there is one.
--
-- $1 schema. `may_act`: whether this session may act as that owner. From
-- PostgreSQL 16 on that is a privilege of its own; before, membership was enough.
--
-- `is_trusted`: any role with CREATE on the schema can make a table that has the
-- history's name, and would own what is made after it. Only tidings_owner, the role
-- of this session, the owner of the schema and superusers are believed.
with
  place (oid, owner) as (
    select
      n.oid,
      -- From PostgreSQL 15 on public belongs to the owner of the database.
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
