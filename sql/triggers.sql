-- Our triggers that don't fire, or that should be ENABLE ALWAYS and aren't
-- (V17__restamp_inserted.sql, V26__memberships.sql), with the consequence and the fix.
--
-- $1 schema. `fires` is pg_trigger.tgenabled, null if the trigger doesn't exist.
with
  place as (select oid, nspname from pg_namespace where nspname = $1),
  wanted ("table", name, always, effect, "create") as (
    values
      (
        'notifications',
        'tidings_ring_doorbell',
        false,
        'enabled: it wakes bridges that are asleep; without it, rows wait for up to a second',
        'after insert on %1$I.notifications for each statement '
        'when (pg_catalog.pg_sequence_last_value(%2$L::regclass) is not null) '
        'execute function %1$I.tidings_ring_doorbell()'
      ),
      (
        'notifications',
        'tidings_reopen',
        true,
        'enabled always: it records that older rows have to be delivered again; until then, each new '
        'connection reads all of its user''s rows in the table',
        'before update of user_id, expires_at, sent_at, xid on %1$I.notifications for each '
        'statement when (current_setting(''tidings.marking'', true) is distinct from ''on'') '
        'execute function %1$I.tidings_reopen()'
      ),
      (
        'notifications',
        'tidings_restamp',
        true,
        'enabled always: it makes rows new that are inserted with an old transaction id, as by a '
        'restore; until then, such rows reach only connections that are opened without a last event '
        'id, and each of those reads all of its user''s rows in the table',
        'after insert on %1$I.notifications for each row '
        'when (new.xid operator(pg_catalog.<>) pg_catalog.pg_current_xact_id() '
        'and new.sent_at is null) '
        'execute function %1$I.tidings_restamp()'
      ),
      (
        'stream_tickets',
        'tidings_end_streams_of_deleted',
        false,
        'enabled: it ends the streams of removed tickets; without it, they stay open',
        'after delete on %1$I.stream_tickets referencing old table as gone for each statement '
        'execute function %1$I.tidings_end_ticket_streams()'
      ),
      (
        'stream_tickets',
        'tidings_end_streams_of_changed',
        false,
        'enabled: it ends the streams of changed tickets; without it, they stay open',
        'after update on %1$I.stream_tickets referencing old table as gone for each statement '
        'execute function %1$I.tidings_end_ticket_streams()'
      ),
      (
        'stream_tickets',
        'tidings_end_streams_of_truncated',
        false,
        'enabled: it ends the streams of removed tickets; without it, they stay open',
        'before truncate on %1$I.stream_tickets for each statement '
        'execute function %1$I.tidings_end_ticket_streams()'
      ),
      (
        'notifications',
        'tidings_refuse_topics',
        true,
        'enabled always: it rejects notifications for topics while a bridge is connected that can''t '
        'read them, and that would deliver nothing more',
        'after insert on %1$I.notifications for each row when (new.topic is not null '
        'and pg_catalog.pg_sequence_last_value(%3$L::regclass) is null) '
        'execute function %1$I.tidings_refuse_topics()'
      ),
      (
        'tidings_bridges_seen',
        'tidings_note_bridge',
        false,
        'enabled: it has INSERTs for topics look for bridges that can''t read them; without it, such a '
        'bridge would deliver nothing more',
        'after insert on %1$I.tidings_bridges_seen for each row when (not new.topics) '
        'execute function %1$I.tidings_note_bridge()'
      ),
      (
        'tidings_membership_changes',
        'tidings_ring_for_memberships',
        false,
        'enabled: it wakes bridges that are asleep; without it, changes of memberships take effect up '
        'to a second late',
        'after insert on %1$I.tidings_membership_changes for each statement '
        'when (pg_catalog.pg_sequence_last_value(%2$L::regclass) is not null) '
        'execute function %1$I.tidings_ring_for_memberships()'
      ),
      (
        'topic_subscriptions',
        'tidings_note_subscribed',
        true,
        'enabled always: it tells bridges who has subscribed; without it, connected users receive '
        'nothing of the topic',
        'after insert on %1$I.topic_subscriptions referencing new table as changed for each statement '
        'execute function %1$I.tidings_note_memberships()'
      ),
      (
        'topic_subscriptions',
        'tidings_note_unsubscribed',
        true,
        'enabled always: it tells bridges whose subscription has ended; without it, connected users '
        'continue to receive the topic',
        'after delete on %1$I.topic_subscriptions referencing old table as changed for each statement '
        'execute function %1$I.tidings_note_memberships()'
      ),
      (
        'topic_subscriptions',
        'tidings_note_truncated',
        true,
        'enabled always: it tells bridges that all subscriptions have ended; without it, connected '
        'users continue to receive their topics',
        'after truncate on %1$I.topic_subscriptions for each statement '
        'execute function %1$I.tidings_note_memberships()'
      ),
      (
        'topic_subscriptions',
        'tidings_keep_membership',
        true,
        'enabled always: it rejects a change of a membership''s user or topic, which bridges don''t '
        'notice',
        'before update on %1$I.topic_subscriptions for each row '
        'when (old.user_id operator(pg_catalog.<>) new.user_id '
        'or old.topic operator(pg_catalog.<>) new.topic) '
        'execute function %1$I.tidings_keep_membership()'
      )
  )
select
  w.name as trigger,
  format('%I.%I', nspname, relname) as "table",
  w.effect,
  t.tgenabled::text as fires,
  concat(
    case when w.always then 'begin; ' end,
    case
      when t.oid is null then
        format(
          'create trigger %I %s;',
          w.name,
          format(
            w."create",
            nspname,
            format('%I.tidings_bell', nspname),
            format('%I.tidings_all_deliver_topics', nspname)
          )
        )
      when not w.always then
        format('alter table %I.%I enable trigger %I;', nspname, relname, w.name)
    end,
    -- What was written without the trigger must be found: existing floors no longer count,
    -- bridges read all memberships again, and INSERTs look for bridges.
    case
      when w.name = 'tidings_note_bridge' then
        format(' select pg_catalog.setval(''%I.tidings_all_deliver_topics'', 1, false);', nspname)
      when w.always then
        format(
          concat(
            ' alter table %1$I.%2$I enable always trigger %3$I; ',
            case
              when w.name in ('tidings_reopen', 'tidings_restamp') then
                'insert into %1$I.tidings_reopened (xid) values (pg_catalog.pg_current_xact_id()) '
                'on conflict do nothing; '
              when relname = 'topic_subscriptions' then
                'insert into %1$I.tidings_membership_changes (user_id) values (null); '
            end,
            'commit;'
          ),
          nspname,
          relname,
          w.name
        )
    end
  ) as fix
from place
join pg_class as c on relnamespace = place.oid and relkind = 'r'
join wanted as w on w."table" = relname
left join pg_trigger as t on tgrelid = c.oid and tgname = w.name and not tgisinternal
where
  (t.oid is null or t.tgenabled <> 'A' and (w.always or t.tgenabled <> 'O'))
  -- A trigger that an older schema doesn't have yet is not missing.
  and exists (
    select
    from pg_proc
    where
      pronamespace = place.oid
      and proname = substring(w."create" from 'function %1\$I\.(\w+)\(')
  )
order by w.name
