-- The triggers that migrations made and that don't fire: what that costs, and what
-- mends it.
--
-- $1 schema. `fires` is pg_trigger.tgenabled, and null where there is none.
with
  place as (select oid, nspname from pg_namespace where nspname = $1),
  wanted ("table", name, effect, "create") as (
    values
      (
        'notifications',
        'tidings_ring_doorbell',
        'it rings for bridges that sleep; without it rows wait for up to a second',
        'after insert on %1$I.notifications for each statement '
        'when (pg_catalog.pg_sequence_last_value(%2$L::regclass) is not null) '
        'execute function %1$I.tidings_ring_doorbell()'
      ),
      (
        'notifications',
        'tidings_reopen',
        'it notes that rows of before are to be delivered; without it those whose mark is taken '
        'away may be passed over',
        'before update of user_id, expires_at, sent_at, xid on %1$I.notifications for each '
        'statement when (current_setting(''tidings.marking'', true) is distinct from ''on'') '
        'execute function %1$I.tidings_reopen()'
      ),
      (
        'stream_tickets',
        'tidings_end_streams_of_deleted',
        'it ends the streams of tickets that are removed; without it they stay open',
        'after delete on %1$I.stream_tickets referencing old table as gone for each statement '
        'execute function %1$I.tidings_end_ticket_streams()'
      ),
      (
        'stream_tickets',
        'tidings_end_streams_of_changed',
        'it ends the streams of tickets that are changed; without it they stay open',
        'after update on %1$I.stream_tickets referencing old table as gone for each statement '
        'execute function %1$I.tidings_end_ticket_streams()'
      ),
      (
        'stream_tickets',
        'tidings_end_streams_of_truncated',
        'it ends the streams of tickets that are removed; without it they stay open',
        'before truncate on %1$I.stream_tickets for each statement '
        'execute function %1$I.tidings_end_ticket_streams()'
      )
  )
select
  w.name as trigger,
  format('%I.%I', nspname, relname) as "table",
  w.effect,
  t.tgenabled::text as fires,
  case
    when t.oid is null then
      format(
        'create trigger %I %s;',
        w.name,
        format(w."create", nspname, format('%I.tidings_bell', nspname))
      )
    else format('alter table %I.%I enable trigger %I;', nspname, relname, w.name)
  end as cure
from place
join pg_class as c on relnamespace = place.oid and relkind = 'r'
join wanted as w on w."table" = relname
left join pg_trigger as t on tgrelid = c.oid and tgname = w.name and not tgisinternal
where
  (t.oid is null or t.tgenabled not in ('O', 'A'))
  -- One that an older schema does not have yet is not gone.
  and exists (
    select
    from pg_proc
    where
      pronamespace = place.oid
      and proname = substring(w."create" from 'function %1\$I\.(\w+)\(')
  )
order by w.name
