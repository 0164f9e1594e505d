-- Privileges of the groups of roles.sql on the objects that `tidings migrate` creates.
--
-- roles.sql includes this file, and `tidings migrate` runs it after its migrations, so
-- the groups may be created before the tables or after them. Groups and objects that
-- don't exist are skipped. It must be run by the owner of the objects, in a
-- transaction, and may be repeated: it first revokes the privileges of PUBLIC and the
-- groups, so that afterwards they have exactly those listed here.
set local search_path to pg_catalog, pg_temp;
set local tidings.schema to :"schema";

do $$
declare
  schema constant text := current_setting('tidings.schema');
  -- Only objects that belong to the history's owner are ours: where other roles may
  -- create objects in the schema, a function of theirs may have one of our names.
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
          and (relname in ('notifications', 'stream_tickets', 'topic_subscriptions') or relname like 'tidings\_%')
        union all
        select 'sequence', relname, oid::regclass::text
        from pg_class
        where
          relnamespace = to_regnamespace(quote_ident(schema))
          and relkind = 'S'
          and relowner = owner
          and relname in ('tidings_bell', 'tidings_all_deliver_topics')
        union all
        select 'routine', proname, oid::regprocedure::text
        from pg_proc
        where
          pronamespace = to_regnamespace(quote_ident(schema))
          and prokind in ('f', 'p')
          and proowner = owner
          and (
            proname in (
              'send_notification', 'create_stream_ticket', 'disconnect_user', 'disconnect_everyone',
              'subscribe', 'unsubscribe', 'send_to_topic', 'send_to_everyone'
            )
            or proname like 'tidings\_%'
          )
      ),
      rights (grantee, privileges, name) as (
        values
          -- Reads all users' notifications and marks rows as sent.
          ('tidings_bridge', 'select, update (sent_at)', 'notifications'),
          ('tidings_bridge', 'select', 'stream_tickets'),
          ('tidings_bridge', 'select', 'tidings_schema_history'),
          ('tidings_bridge', 'execute', 'tidings_pruned_through'),
          ('tidings_bridge', 'execute', 'tidings_disconnections_since'),
          ('tidings_bridge', 'execute', 'tidings_disconnections_page'),
          ('tidings_bridge', 'select, insert, update', 'tidings_drained'),
          ('tidings_bridge', 'select', 'tidings_reopened'),
          -- Removes rows that are past their retention, and nothing else.
          ('tidings_bridge', 'execute', 'tidings_prune_batch'),
          ('tidings_bridge', 'select', 'tidings_prune_failures'),
          -- Marks rows of applications' tables, by their own functions.
          ('tidings_bridge', 'select', 'tidings_adopted'),
          ('tidings_bridge', 'execute', 'tidings_mark_adopted'),
          ('tidings_bridge', 'execute', 'tidings_report'),
          ('tidings_bridge', 'execute', 'tidings_report_readiness'),
          -- Who receives which topics, and up to where each user has.
          ('tidings_bridge', 'select', 'topic_subscriptions'),
          ('tidings_bridge', 'select', 'tidings_membership_changes'),
          ('tidings_bridge', 'select, insert, update', 'tidings_cursors'),
          ('tidings_bridge', 'execute', 'tidings_report_topics'),
          -- Detects crashes of the server.
          ('tidings_bridge', 'select, insert', 'tidings_incarnation'),
          -- By which replicas prove that they follow the primary.
          ('tidings_bridge', 'select, insert', 'tidings_histories'),
          -- Seals what bridges send each other.
          ('tidings_bridge', 'select', 'tidings_feed_keys'),
          -- Writers read whether to ring; bridges set it.
          ('public', 'select', 'tidings_bell'),
          ('tidings_bridge', 'select, update', 'tidings_bell'),
          -- Writers read whether they have to look for bridges that don't deliver topics.
          ('public', 'select', 'tidings_all_deliver_topics'),
          -- Writes to all users and reads nothing. The id is for RETURNING.
          (
            'tidings_writer',
            'insert (user_id, text, event, expires_at), select (id)',
            'notifications'
          ),
          ('tidings_writer', 'insert (ref)', 'notifications'),
          ('tidings_writer', 'insert (topic)', 'notifications'),
          ('tidings_writer', 'execute', 'send_notification'),
          ('tidings_writer', 'execute', 'send_to_topic'),
          ('tidings_writer', 'execute', 'send_to_everyone'),
          -- Bridges read memberships again; they stay what they are.
          ('tidings_writer', 'execute', 'tidings_memberships_changed'),
          -- Has rows of its own tables copied.
          ('tidings_writer', 'select', 'tidings_adopted'),
          ('tidings_writer', 'execute', 'tidings_adopt'),
          ('tidings_writer', 'execute', 'tidings_unadopt'),
          -- Opens and ends any user's stream.
          ('tidings_issuer', 'execute', 'create_stream_ticket'),
          ('tidings_issuer', 'execute', 'disconnect_user'),
          ('tidings_issuer', 'execute', 'disconnect_everyone'),
          ('tidings_issuer', 'select, delete', 'stream_tickets'),
          -- Lets any user receive any topic.
          ('tidings_issuer', 'execute', 'subscribe'),
          ('tidings_issuer', 'execute', 'unsubscribe'),
          ('tidings_issuer', 'select, delete', 'topic_subscriptions'),
          -- Has memberships of its own tables copied. tidings_watch runs as its caller,
          -- who needs what it calls.
          ('tidings_issuer', 'execute', 'tidings_watch'),
          ('tidings_issuer', 'execute', 'tidings_watched'),
          ('tidings_issuer', 'execute', 'tidings_watchable_types'),
          ('tidings_issuer', 'execute', 'tidings_sync_memberships'),
          ('tidings_issuer', 'execute', 'tidings_memberships_changed'),
          -- Counts rows but doesn't read texts.
          (
            'tidings_monitor',
            'select (id, user_id, event, created_at, expires_at, sent_at, sent, xid)',
            'notifications'
          ),
          ('tidings_monitor', 'select (ref)', 'notifications'),
          ('tidings_monitor', 'select (topic)', 'notifications'),
          ('tidings_monitor', 'select', 'topic_subscriptions'),
          ('tidings_monitor', 'execute', 'tidings_count_topics'),
          ('tidings_bridge', 'execute', 'tidings_count_topics'),
          ('tidings_monitor', 'select', 'tidings_adopted'),
          ('tidings_monitor', 'select', 'tidings_pruned'),
          ('tidings_monitor', 'select', 'tidings_prune_failures'),
          ('tidings_monitor', 'select', 'tidings_schema_history'),
          ('tidings_monitor', 'execute', 'tidings_pending_users'),
          ('tidings_bridge', 'execute', 'tidings_pending_users')
        -- The roles of bridges may read the views, as dashboards may.
        union all
        select grantee, 'select', name
        from unnest(array['tidings_monitor', 'tidings_bridge']) as grantee
        cross join unnest(
          array[
            'tidings_pending', 'tidings_pending_total', 'tidings_throughput', 'tidings_delay',
            'tidings_bridges', 'tidings_size', 'tidings_queue', 'tidings_topics'
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
      where
        (grantee = 'public' or to_regrole(grantee) is not null)
        -- Migrations 20 and 24 add these columns, and this file may be run before.
        and (
          privileges !~ ' \((ref|topic)\)$'
          or exists (
            select
            from pg_attribute
            where
              attrelid = to_regclass(format('%I.notifications', schema))
              and attname = substring(privileges from '\((\w+)\)$')
          )
        )
    ) as ordered (turn, statements)
    order by turn
  loop
    execute statement;
  end loop;
end
$$;
