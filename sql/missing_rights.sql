-- Privileges that `tidings serve` needs in the database and this role lacks, and those
-- that every writer needs.
--
-- $1 schema. An object that doesn't exist is not reported here: migrations create it.
with
  place as (select oid, nspname from pg_namespace where nspname = $1),
  uses (name, privilege) as (
    values
      ('notifications', 'select'),
      ('notifications', 'update (sent_at)'),
      ('stream_tickets', 'select'),
      ('tidings_schema_history', 'select'),
      ('tidings_drained', 'select'),
      ('tidings_drained', 'insert'),
      ('tidings_drained', 'update'),
      ('tidings_reopened', 'select'),
      ('tidings_incarnation', 'select'),
      ('tidings_incarnation', 'insert'),
      ('tidings_histories', 'select'),
      ('tidings_histories', 'insert'),
      ('tidings_feed_keys', 'select'),
      ('tidings_adopted', 'select'),
      ('topic_subscriptions', 'select'),
      ('tidings_membership_changes', 'select'),
      ('tidings_cursors', 'select'),
      ('tidings_cursors', 'insert'),
      ('tidings_cursors', 'update'),
      ('tidings_bell', 'select'),
      ('tidings_bell', 'update')
  ),
  functions (identity, oid) as (
    select
      format('%I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(f.oid)),
      f.oid
    from place
    join pg_proc as f on pronamespace = place.oid
    where
      proname in (
        'tidings_pruned_through', 'tidings_disconnections_page', 'tidings_report',
        'tidings_report_readiness', 'tidings_report_topics', 'tidings_mark_adopted'
      )
    union all
    select format('pg_catalog.%s', name), name::regprocedure
    from unnest(
      -- As in roles.sql.
      array[
        'pg_current_snapshot()',
        'pg_snapshot_xmax(pg_snapshot)',
        'pg_snapshot_xmin(pg_snapshot)',
        'pg_visible_in_snapshot(xid8,pg_snapshot)',
        'pg_is_in_recovery()',
        'pg_control_system()',
        'pg_control_checkpoint()',
        'pg_current_wal_lsn()',
        'pg_current_wal_insert_lsn()',
        'pg_current_wal_flush_lsn()',
        'pg_walfile_name(pg_lsn)',
        'pg_stat_get_subscription(oid)',
        'pg_notify(text, text)',
        'pg_try_advisory_xact_lock(integer, integer)',
        'pg_sequence_last_value(regclass)',
        'setval(regclass, bigint)',
        'setval(regclass, bigint, boolean)',
        'pg_lock_status()',
        'set_config(text, text, boolean)',
        'pg_notification_queue_usage()'
      ]
    ) as name
  )
select
  current_user::text as who,
  true as is_bridge,
  'the bridge reads rows, marks them, and sets whether INSERTs send NOTIFY' as why,
  privilege,
  target,
  format('grant %s on %s to %I;', privilege, target, current_user) as fix
from (
  select 'usage', format('schema %I', nspname)
  from place
  where not has_schema_privilege(oid, 'usage')
  union all
  select
    privilege,
    format('%s %I.%I', case relkind when 'S' then 'sequence' else 'table' end, nspname, relname)
  from place
  join pg_class as c on relnamespace = place.oid and relkind in ('r', 'S')
  join uses on name = relname
  where
    not case
      when relkind = 'S' then has_sequence_privilege(c.oid, privilege)
      when privilege = 'update (sent_at)' then has_column_privilege(c.oid, 'sent_at', 'update')
      else has_table_privilege(c.oid, privilege)
    end
  union all
  select 'execute', format('function %s', identity)
  from functions
  where not has_function_privilege(oid, 'execute')
) as missing (privilege, target)
union all
-- Conditions of triggers are evaluated with the privileges of the inserting role.
select
  'public',
  false,
  case relname
    when 'tidings_bell' then
      'without it, INSERTs by other roles than the owner fail, or, from PostgreSQL 18 on, send no NOTIFY'
    else
      'without it, INSERTs for topics by other roles than the owner fail, or, from PostgreSQL 18 on, '
      'take longer'
  end,
  'select',
  format('sequence %I.%I', nspname, relname),
  format('grant select on sequence %I.%I to public;', nspname, relname)
from place
join pg_class as c on
  relnamespace = place.oid and relname in ('tidings_bell', 'tidings_all_deliver_topics')
-- This function fails for anything but a sequence, and conditions are evaluated in any
-- order.
where case when relkind = 'S' then not has_sequence_privilege('public', c.oid, 'select') end
