-- Whether a role may insert into notifications, and this session may do what else it takes
-- to adopt a table.
--
-- $1 schema of Tidings, $2 owner of the table, $3 schema of the table. No row: Tidings is
-- not installed there, or is too old. `may_create`: create the owner's functions in the
-- table's schema; `may_register`: call tidings_adopt; `may_grant`: let the owner insert;
-- `may_mark`: name a function that marks rows there. `may_reach`: the owner of Tidings may
-- use the table's schema. `replaces_triggers`: the server can, without a lock that readers
-- wait for.
select
  pg_get_userbyid(registry.relowner)::text as tidings_owner,
  to_regrole('tidings_writer') is not null as has_group,
  has_schema_privilege($2, place.oid, 'usage')
    and has_column_privilege($2, notifications.oid, 'user_id', 'insert')
    and has_column_privilege($2, notifications.oid, 'text', 'insert')
    and has_column_privilege($2, notifications.oid, 'event', 'insert')
    and has_column_privilege($2, notifications.oid, 'ref', 'insert') as may_insert,
  has_schema_privilege(home.oid, 'create')
    and (has_schema_privilege($2, home.oid, 'create') or me.rolsuper) as may_create,
  has_schema_privilege(place.oid, 'usage')
    and has_function_privilege(register.oid, 'execute') as may_register,
  case
    when to_regrole('tidings_writer') is null then pg_has_role(registry.relowner, 'usage')
    else pg_has_role(to_regrole('tidings_writer')::oid, 'member with admin option')
  end as may_grant,
  pg_has_role(session_user, registry.relowner, 'member') as may_mark,
  has_schema_privilege(registry.relowner, home.oid, 'usage') as may_reach,
  session_user::text as role,
  current_setting('server_version_num')::int >= 140000 as replaces_triggers
from pg_namespace as place
join pg_class as registry
  on registry.relnamespace = place.oid and registry.relname = 'tidings_adopted'
join pg_class as notifications
  on notifications.relnamespace = place.oid and notifications.relname = 'notifications'
join pg_proc as register
  on register.pronamespace = place.oid and register.proname = 'tidings_adopt'
join pg_roles as me on me.rolname = current_user
left join pg_namespace as home on home.nspname = $3
where place.nspname = $1
