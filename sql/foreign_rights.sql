-- Privileges on our objects held by roles other than the owner, the groups of
-- roles.sql, and the current role.
--
-- $1 schema. A role that may insert the columns that an application writes and select
-- ids has no more than tidings_writer and is left out. `reads`: the privilege lets the
-- role read notifications, from the table or with a ticket. `creates`: the role can
-- create objects in the schema; this covers every role except the owner of our objects
-- and the owner of the schema.
with
  place as (select oid, nspname, nspowner, nspacl from pg_namespace where nspname = $1),
  owner (oid) as (
    select coalesce(
      (
        select relowner
        from pg_class
        where relname = 'tidings_schema_history' and relnamespace = (select oid from place)
      ),
      to_regrole('tidings_owner'),
      to_regrole(quote_ident(current_user))
    )
  ),
  tables as (
    select c.oid, relname, relacl, format('table %I.%I', nspname, relname) as target
    from place
    join pg_class as c on relnamespace = place.oid and relkind in ('r', 'v')
    where
      relowner = (select oid from owner)
      and (relname in ('notifications', 'stream_tickets', 'topic_subscriptions') or relname like 'tidings\_%')
  ),
  rights (grantee, privilege, target, reads) as (
    select grantee, lower(privilege_type), target, relname = 'notifications' and privilege_type = 'SELECT'
    from tables
    cross join aclexplode(relacl)
    union all
    select
      grantee,
      format('%s (%s)', lower(privilege_type), string_agg(quote_ident(attname), ', ' order by attnum)),
      target,
      privilege_type = 'SELECT' and bool_or(relname = 'notifications' and attname = 'text')
    from tables
    join pg_attribute on attrelid = tables.oid
    cross join aclexplode(attacl)
    where
      grantee = 0
      or relname <> 'notifications'
      or not (
        privilege_type = 'INSERT' and attname in ('user_id', 'topic', 'text', 'event', 'expires_at', 'ref')
        or privilege_type = 'SELECT' and attname = 'id'
      )
    group by grantee, privilege_type, target
    union all
    select
      grantee,
      lower(privilege_type),
      format(
        '%s %I.%I(%s)',
        case prokind when 'p' then 'procedure' else 'function' end,
        nspname, proname, pg_get_function_identity_arguments(f.oid)
      ),
      proname = 'create_stream_ticket'
    from place
    join pg_proc as f on pronamespace = place.oid
    cross join aclexplode(coalesce(proacl, acldefault('f', proowner)))
    where
      proowner = (select oid from owner)
      and (
        proname in (
          'send_notification', 'create_stream_ticket', 'disconnect_user', 'disconnect_everyone',
          'subscribe', 'unsubscribe', 'send_to_topic', 'send_to_everyone'
        )
        or proname like 'tidings\_%'
      )
    union all
    select grantee, 'create', format('schema %I', nspname), null
    from place
    cross join aclexplode(coalesce(nspacl, acldefault('n', nspowner)))
    where privilege_type = 'CREATE' and grantee <> nspowner
  ),
  -- Default privileges for tables and functions of later migrations. Migrations revoke
  -- what PUBLIC gets on functions by default.
  defaults (grantee, privilege, kind, "where") as (
    select
      grantee,
      lower(string_agg(privilege_type, ', ' order by privilege_type)),
      case defaclobjtype when 'r' then 'tables' else 'functions' end,
      case when defaclnamespace <> 0 then (select format(' in schema %I', nspname) from place) else '' end
    from pg_default_acl
    cross join aclexplode(defaclacl)
    where
      defaclrole = (select oid from owner)
      and defaclnamespace in (0, (select oid from place))
      and (defaclobjtype = 'r' or defaclobjtype = 'f' and grantee <> 0)
    group by grantee, defaclobjtype, defaclnamespace
  ),
  found (grantee, what, statement, reads) as (
    select
      grantee,
      format('%s on %s', privilege, target),
      format('revoke %s on %s from ', privilege, target),
      reads
    from rights
    union all
    select
      grantee,
      format('%s on all new %s', privilege, kind),
      format(
        'alter default privileges for role %s%s revoke %s on %s from ',
        (select oid::regrole from owner), "where", privilege, kind
      ),
      false
    from defaults
  )
select
  g.name as grantee,
  what,
  statement || g.name || ';' as fix,
  reads is true as reads,
  reads is null as creates
from found
cross join lateral (
  select case when grantee = 0 then 'public' else grantee::regrole::text end
) as g (name)
where
  grantee <> (select oid from owner)
  and grantee not in (
    select oid
    from pg_roles
    where
      rolname = 'tidings_owner'
      or reads is not null
      and rolname in (
        current_user, 'tidings_bridge', 'tidings_writer', 'tidings_issuer', 'tidings_monitor'
      )
  )
order by reads desc nulls last, what, grantee
