-- What each of the groups of roles.sql may do with what `tidings migrate` made.
--
-- roles.sql includes this file, and `tidings migrate` runs it after its
-- migrations, so the groups may come before the tables or after them. Groups
-- and objects that don't exist are left out. It is to be run by the owner of
-- the objects, in a transaction, and may be repeated: what PUBLIC and the groups
-- have is taken away first, so that afterwards they have what stands here.
set local search_path to pg_catalog, pg_temp;
set local tidings.schema to :"schema";

do $$
declare
  schema constant text := current_setting('tidings.schema');
  -- Only what belongs to the owner of the history is ours: where others may
  -- create in the schema, a function of theirs may bear the name of one of ours.
  owner constant oid := (
    select relowner
    from pg_class
    where oid = to_regclass(format('%I.tidings_schema_history', schema))
  );
  groups constant text := (
    select string_agg(rolname, ', ')
    from pg_roles
    where rolname in ('tidings_bridge', 'tidings_writer', 'tidings_issuer', 'tidings_monitor')
  );
  statement text;
begin
  if
    groups is not null
    and (select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = schema)
  then
    execute format('grant usage on schema %I to %s', schema, groups);
  end if;

  for statement in
    with
      objects (kind, name, identity) as (
        select 'table', relname, oid::regclass::text
        from pg_class
        where
          relnamespace = to_regnamespace(quote_ident(schema))
          and relkind in ('r', 'v')
          and relowner = owner
          and (relname in ('notifications', 'stream_tickets') or relname like 'tidings\_%')
        union all
        select 'sequence', relname, oid::regclass::text
        from pg_class
        where
          relnamespace = to_regnamespace(quote_ident(schema))
          and relkind = 'S'
          and relowner = owner
          and relname = 'tidings_bell'
        union all
        select 'routine', proname, oid::regprocedure::text
        from pg_proc
        where
          pronamespace = to_regnamespace(quote_ident(schema))
          and prokind in ('f', 'p')
          and proowner = owner
          and (
            proname in (
              'send_notification', 'create_stream_ticket', 'disconnect_user', 'disconnect_everyone'
            )
            or proname like 'tidings\_%'
          )
      ),
      rights (grantee, privileges, name) as (
        values
          -- Reads everybody's notifications, and marks what was sent.
          ('tidings_bridge', 'select, update (sent_at)', 'notifications'),
          ('tidings_bridge', 'select', 'stream_tickets'),
          ('tidings_bridge', 'select', 'tidings_schema_history'),
          ('tidings_bridge', 'execute', 'tidings_pruned_through'),
          ('tidings_bridge', 'execute', 'tidings_disconnections_since'),
          ('tidings_bridge', 'execute', 'tidings_disconnections_page'),
          ('tidings_bridge', 'select, insert, update', 'tidings_drained'),
          ('tidings_bridge', 'select', 'tidings_reopened'),
          -- Removes what has had its time, and nothing else.
          ('tidings_bridge', 'execute', 'tidings_prune_batch'),
          ('tidings_bridge', 'select', 'tidings_prune_failures'),
          ('tidings_bridge', 'execute', 'tidings_report'),
          ('tidings_bridge', 'execute', 'tidings_report_readiness'),
          -- Notices that the server has crashed.
          ('tidings_bridge', 'select, insert', 'tidings_incarnation'),
          -- Whoever inserts reads whether to ring, and bridges say.
          ('public', 'select', 'tidings_bell'),
          ('tidings_bridge', 'select, update', 'tidings_bell'),
          -- Writes to everybody, and reads nothing. The id is for RETURNING.
          (
            'tidings_writer',
            'insert (user_id, text, event, expires_at), select (id)',
            'notifications'
          ),
          ('tidings_writer', 'execute', 'send_notification'),
          -- Opens everybody's stream, and ends it.
          ('tidings_issuer', 'execute', 'create_stream_ticket'),
          ('tidings_issuer', 'execute', 'disconnect_user'),
          ('tidings_issuer', 'execute', 'disconnect_everyone'),
          ('tidings_issuer', 'select, delete', 'stream_tickets'),
          -- Counts, and doesn't read.
          (
            'tidings_monitor',
            'select (id, user_id, event, created_at, expires_at, sent_at, sent, xid)',
            'notifications'
          ),
          ('tidings_monitor', 'select', 'tidings_pruned'),
          ('tidings_monitor', 'select', 'tidings_prune_failures'),
          ('tidings_monitor', 'select', 'tidings_schema_history'),
          ('tidings_monitor', 'execute', 'tidings_pending_users'),
          ('tidings_bridge', 'execute', 'tidings_pending_users')
        -- Who runs a bridge sees how it does, as a dashboard does.
        union all
        select grantee, 'select', name
        from unnest(array['tidings_monitor', 'tidings_bridge']) as grantee
        cross join unnest(
          array[
            'tidings_pending', 'tidings_pending_total', 'tidings_throughput', 'tidings_delay',
            'tidings_bridges', 'tidings_size', 'tidings_queue'
          ]
        ) as name
      )
    select statements
    from (
      select
        1,
        format('revoke all on %s %s from %s', kind, identity, concat_ws(', ', 'public', groups))
      from objects
      union all
      select 2, format('grant %s on %s %s to %s', privileges, kind, identity, grantee)
      from rights
      join objects using (name)
      where grantee = 'public' or to_regrole(grantee) is not null
    ) as ordered (turn, statements)
    order by turn
  loop
    execute statement;
  end loop;
end
$$;
