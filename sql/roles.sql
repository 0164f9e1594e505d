-- The roles of Tidings, for DBAs:
--
--     psql -v schema=public -f sql/roles.sql
--
-- `tidings roles` prints this file with the privileges that it includes.
--
-- | group           | for                                                         |
-- | --------------- | ----------------------------------------------------------- |
-- | tidings_owner   | `tidings migrate`; owns the tables and functions            |
-- | tidings_bridge  | `tidings serve`                                             |
-- | tidings_writer  | applications that send notifications                        |
-- | tidings_issuer  | applications that log users in and out: tickets, logout. A  |
-- |                 | role that may issue tickets can read every user's stream    |
-- | tidings_monitor | dashboards: everything about notifications except the text  |
--
-- None of them can log in: grant them to roles that do (`grant tidings_bridge to
-- bridge`). Run this file before or after `tidings migrate`, as often as you like;
-- objects that an earlier `tidings migrate` created are handed over to tidings_owner.
-- It either completes or changes nothing. If a role other than this one or the owner of
-- the schema ran that `tidings migrate`, name it (-v from=app).
--
-- No superuser is needed, only a role that has CREATEROLE and owns the schema (or may
-- create it) and the objects of Tidings in it. That role becomes a member of
-- tidings_owner. A superuser is needed only where the default privileges of PUBLIC were
-- revoked; a warning then lists the statements to run.
\set ON_ERROR_STOP on
\if :{?schema}
\else
  \set schema public
\endif
\if :{?from}
\else
  \set from ''
\endif

begin;
set local search_path to pg_catalog, pg_temp;
set local client_min_messages to notice;
set local tidings.schema to :"schema";
set local tidings.handed_over_by to :'from';

-- The groups.
do $$
declare
  wanted text;
begin
  foreach wanted in array array[
    'tidings_owner', 'tidings_bridge', 'tidings_writer', 'tidings_issuer', 'tidings_monitor'
  ]
  loop
    if to_regrole(wanted) is null then
      execute format('create role %I nologin', wanted);
    end if;
  end loop;
  -- From PostgreSQL 16 on, membership alone doesn't let a role act as another; before,
  -- it did, and there was no separate privilege.
  if not pg_has_role(
    'tidings_owner',
    case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end
  ) then
    execute format('grant tidings_owner to %I', current_user);
  end if;
exception
  when insufficient_privilege then
    raise exception using
      message = format('%I may not do this: %s', current_user, sqlerrm),
      hint = format(
        'Let a superuser run "alter role %1$I createrole;". If the groups exist already, let a superuser '
        'or the role that created them run "grant tidings_owner to %1$I;".',
        current_user
      );
end
$$;

-- The schema.
do $$
declare
  schema constant text := current_setting('tidings.schema');
begin
  if to_regnamespace(quote_ident(schema)) is null then
    execute format('create schema %I authorization tidings_owner', schema);
  else
    execute format('grant usage, create on schema %I to tidings_owner', schema);
  end if;
  -- If this role can't grant the privilege, Postgres only warns.
  if not has_schema_privilege('tidings_owner', schema, 'create') then
    raise insufficient_privilege using message = format('permission denied for schema %s', schema);
  end if;
  if (select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = schema) then
    execute format(
      'grant usage on schema %I to tidings_bridge, tidings_writer, tidings_issuer, tidings_monitor',
      schema
    );
  end if;
exception
  when insufficient_privilege then
    raise exception using
      message = format('%I may not do this: %s', current_user, sqlerrm),
      hint = case
        when to_regnamespace(quote_ident(schema)) is null then format(
          'Let the owner of the database run "grant create on database %I to %I;".',
          current_database(),
          current_user
        )
        else format(
          'Run this file as the owner of the schema, who is %s.',
          (select nspowner::regrole from pg_namespace where nspname = schema)
        )
      end;
end
$$;

-- Existing objects are handed over to tidings_owner: those that this release creates,
-- with exactly these arguments, and that belong to the history's owner. Privileges on
-- them that were granted to others are revoked; those of the groups are granted at the
-- end.
--
-- Any role with CREATE on the schema could have created a table with the history's
-- name, and a function with one of our names that would run as tidings_owner from now
-- on. So the history must belong to this role, the owner of the schema, a superuser, or
-- the role that you name:
--
--     psql -v schema=public -v from=app -f sql/roles.sql
do $$
declare
  schema constant text := current_setting('tidings.schema');
  owner constant regrole := (
    select relowner
    from pg_class
    where oid = to_regclass(format('%I.tidings_schema_history', schema))
  );
  -- From PostgreSQL 15 on, public belongs to the owner of the database.
  schema_owner constant regrole := (
    select case
      when nspowner = to_regrole('pg_database_owner')
      then (select datdba from pg_database where datname = current_database())
      else nspowner
    end
    from pg_namespace
    where nspname = schema
  );
  handover record;
  grantee text;
begin
  if owner is null or owner = 'tidings_owner'::regrole then
    return;
  end if;
  if owner not in (to_regrole(quote_ident(current_user)), schema_owner)
    and not (select rolsuper from pg_roles where oid = owner)
    and owner is distinct from to_regrole(quote_ident(current_setting('tidings.handed_over_by')))
  then
    raise exception using
      message = format(
        'the history of Tidings in the schema %s belongs to %s, who is neither the owner of the '
        'schema (%s) nor the role that runs this (%I)',
        schema, owner, schema_owner, current_user
      ),
      hint = format(
        'If %1$s installed Tidings here, repeat with -v from=%1$s. If not, remove it: '
        'drop table %2$I.tidings_schema_history;',
        owner, schema
      );
  end if;
  for handover in
    select
      format('%s %s', kind, oid::regclass) as object,
      case kind when 'sequence' then 'sequence' else 'table' end || ' ' || oid::regclass::text
        as granted,
      coalesce(relacl, acldefault(case kind when 'sequence' then 's' else 'r' end::"char", relowner))
        || array(
          select a
          from pg_attribute
          cross join unnest(attacl) as a
          where attrelid = pg_class.oid and attacl is not null
        ) as acl
    from (
      values
        ('table', 'notifications'),
        ('table', 'stream_tickets'),
        ('table', 'tidings_activity'),
        ('table', 'tidings_adopted'),
        ('table', 'tidings_bridges_seen'),
        ('table', 'tidings_cursors'),
        ('table', 'tidings_disconnections'),
        ('table', 'tidings_drained'),
        ('table', 'tidings_feed_keys'),
        ('table', 'tidings_histories'),
        ('table', 'tidings_incarnation'),
        ('table', 'tidings_membership_changes'),
        ('table', 'tidings_prune_failures'),
        ('table', 'tidings_pruned'),
        ('table', 'tidings_reopened'),
        ('table', 'tidings_schema_history'),
        ('table', 'topic_subscriptions'),
        ('view', 'tidings_bridges'),
        ('view', 'tidings_delay'),
        ('view', 'tidings_pending'),
        ('view', 'tidings_pending_total'),
        ('view', 'tidings_queue'),
        ('view', 'tidings_size'),
        ('view', 'tidings_throughput'),
        ('view', 'tidings_topics'),
        ('sequence', 'tidings_all_deliver_topics'),
        ('sequence', 'tidings_bell')
    ) as made (kind, name)
    join pg_class on oid = to_regclass(format('%I.%I', schema, name))
    where
      relowner = owner
      and relkind = case kind when 'table' then 'r' when 'view' then 'v' else 'S' end
    union all
    select
      format('routine %s', oid::regprocedure),
      format('routine %s', oid::regprocedure),
      coalesce(proacl, acldefault('f', proowner))
    from (
      values
        ('create_stream_ticket(text, interval)'),
        ('create_stream_ticket(text, interval, text[])'),
        ('disconnect_everyone()'),
        ('disconnect_user(bigint)'),
        ('disconnect_user(text)'),
        -- Those with three arguments, where V22 hasn't been applied yet.
        ('rotate_feed_key()'),
        ('send_notification(bigint, text, text)'),
        ('send_notification(bigint, text, text, timestamptz, text)'),
        ('send_notification(text, text, text)'),
        ('send_notification(text, text, text, timestamptz, text)'),
        ('send_to_everyone(text, text, timestamptz, text)'),
        ('send_to_topic(text, text, text, timestamptz, text)'),
        ('subscribe(bigint, text)'),
        ('subscribe(text, text)'),
        ('tidings_adopt(regclass, text, name)'),
        ('tidings_count_topics()'),
        ('tidings_disconnections_page(xid8, xid8[], bigint[], integer)'),
        ('tidings_disconnections_since(pg_snapshot)'),
        ('tidings_end_ticket_streams()'),
        ('tidings_keep_membership()'),
        ('tidings_ring_for_memberships()'),
        ('tidings_mark_adopted(name, name, bigint[], integer)'),
        ('tidings_memberships_changed(text)'),
        ('tidings_note_bridge()'),
        ('tidings_note_memberships()'),
        ('tidings_pending_users()'),
        -- Those without the last argument, where V30 hasn't been applied yet.
        ('tidings_prune(interval, integer)'),
        ('tidings_prune(interval, integer, interval)'),
        ('tidings_prune_batch(interval, bigint, integer)'),
        ('tidings_prune_batch(interval, bigint, integer, interval)'),
        ('tidings_prune_disconnections(integer)'),
        ('tidings_prune_membership_changes(integer)'),
        ('tidings_prune_rows(bigint[], bigint, interval)'),
        ('tidings_pruned_through()'),
        ('tidings_refuse_topics()'),
        ('tidings_reopen()'),
        (
          'tidings_report(text, text, text, text, inet, timestamptz, integer, timestamptz, text, '
          'timestamptz, bigint, interval, timestamptz, bigint, bigint, bigint[])'
        ),
        ('tidings_report_readiness(text, text, text)'),
        ('tidings_report_topics(text)'),
        ('tidings_restamp()'),
        ('tidings_ring_doorbell()'),
        ('tidings_sync_memberships(text, text[], text[])'),
        ('tidings_unadopt(name, name)'),
        ('tidings_watch(regclass, name, name, text)'),
        ('tidings_watchable_types()'),
        ('tidings_watched()'),
        ('unsubscribe(bigint, text)'),
        ('unsubscribe(text, text)')
    ) as made (signature)
    join pg_proc on oid = to_regprocedure(format('%I.%s', schema, signature))
    where proowner = owner and prokind in ('f', 'p')
  loop
    execute format('alter %s owner to tidings_owner', handover.object);
    raise notice 'alter % owner to tidings_owner (it was %''s)', handover.object, owner;
    for grantee in
      select distinct
        case when r.grantee = 0 then 'public' else r.grantee::regrole::text end
      from aclexplode(handover.acl) as r
      where r.grantee <> 'tidings_owner'::regrole
    loop
      execute format('revoke all on %s from %s cascade', handover.granted, grantee);
    end loop;
  end loop;
exception
  when insufficient_privilege then
    raise exception using
      message = format('existing objects of Tidings belong to %s: %s', owner, sqlerrm),
      hint = format(
        'Let that role or a superuser run "grant %s to %I;", and repeat. If that role is a superuser, '
        'let a superuser run this file.',
        owner,
        current_user
      );
end
$$;

-- Functions that our functions, queries and defaults call. PUBLIC may call all of them
-- unless that was revoked; a superuser grants them explicitly, in case it is revoked
-- later.
do $$
declare
  called record;
  is_superuser constant boolean := (select rolsuper from pg_roles where rolname = current_user);
begin
  for called in
    select
      has_function_privilege(grantee, function, 'execute') as may_call,
      format('grant execute on function pg_catalog.%s to %I', function, grantee) as statement
    from (
      values
        -- Disconnections, tickets, and the migration lock.
        ('tidings_owner', 'pg_notify(text, text)'),
        ('tidings_owner', 'gen_random_uuid()'),
        ('tidings_owner', 'sha256(bytea)'),
        ('tidings_owner', 'hashtextextended(text, bigint)'),
        ('tidings_owner', 'set_config(text, text, boolean)'),
        ('tidings_owner', 'pg_try_advisory_lock(bigint)'),
        -- The column xid.
        ('tidings_owner', 'pg_current_xact_id()'),
        ('tidings_writer', 'pg_current_xact_id()'),
        -- The doorbell: the trigger's condition, and whether writers must ring.
        ('tidings_owner', 'pg_sequence_last_value(regclass)'),
        ('tidings_writer', 'pg_sequence_last_value(regclass)'),
        ('tidings_bridge', 'pg_sequence_last_value(regclass)'),
        ('tidings_bridge', 'setval(regclass, bigint)'),
        ('tidings_bridge', 'setval(regclass, bigint, boolean)'),
        ('tidings_bridge', 'pg_try_advisory_xact_lock(integer, integer)'),
        ('tidings_bridge', 'pg_try_advisory_lock(integer, integer)'),
        ('tidings_bridge', 'pg_lock_status()'),
        ('tidings_bridge', 'pg_notify(text, text)'),
        -- Which rows of the future must not be removed yet, and pending rows.
        ('tidings_owner', 'pg_control_system()'),
        ('tidings_owner', 'pg_current_snapshot()'),
        ('tidings_owner', 'pg_snapshot_xmax(pg_snapshot)'),
        -- Positions, and which history of which cluster they belong to.
        ('tidings_bridge', 'pg_current_snapshot()'),
        ('tidings_bridge', 'pg_snapshot_xmax(pg_snapshot)'),
        ('tidings_bridge', 'pg_snapshot_xmin(pg_snapshot)'),
        ('tidings_bridge', 'pg_visible_in_snapshot(xid8, pg_snapshot)'),
        ('tidings_bridge', 'pg_is_in_recovery()'),
        ('tidings_bridge', 'pg_control_system()'),
        ('tidings_bridge', 'pg_control_checkpoint()'),
        ('tidings_bridge', 'pg_current_wal_lsn()'),
        ('tidings_bridge', 'pg_current_wal_insert_lsn()'),
        ('tidings_bridge', 'pg_current_wal_flush_lsn()'),
        ('tidings_bridge', 'pg_walfile_name(pg_lsn)'),
        -- For bridges before schema version 15.
        ('tidings_bridge', 'pg_stat_get_bgwriter_stat_reset_time()'),
        ('tidings_bridge', 'pg_stat_get_subscription(oid)'),
        ('tidings_bridge', 'set_config(text, text, boolean)'),
        -- Whether there is room in the notification queue.
        ('tidings_owner', 'pg_notification_queue_usage()'),
        -- For the views.
        ('tidings_bridge', 'pg_notification_queue_usage()'),
        ('tidings_monitor', 'pg_notification_queue_usage()')
    ) as calls (grantee, function)
  loop
    if is_superuser then
      execute called.statement;
    elsif not called.may_call then
      raise warning 'Let a superuser run: %;', called.statement;
    end if;
  end loop;
end
$$;

set local role tidings_owner;
\ir grants.sql

commit;
