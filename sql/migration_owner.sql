-- To whom belongs what migrations make in a schema: to the owner of what is
-- there, or else to the group that roles.sql makes for it, if there is one.
--
-- $1 schema. `may_act`: whether this session may act as that owner. From
-- PostgreSQL 16 on that is a privilege of its own; before, membership was enough.
select
  owner.rolname::text as owner,
  history.relowner is not null as is_there,
  pg_has_role(
    owner.oid,
    case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end
  ) as may_act
from (
  select (
    select relowner
    from pg_class
    where
      relname = 'tidings_schema_history'
      and relnamespace = (select oid from pg_namespace where nspname = $1)
  )
) as history
join pg_roles as owner
  on owner.oid = coalesce(history.relowner, to_regrole('tidings_owner'))
