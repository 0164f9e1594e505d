-- A notification may be for a topic instead of a user: one row for all of the topic's
-- subscribers. The topic * means everyone.
--
-- Earlier bridges can't read a row without a user. While one of them is connected, a
-- row for a topic is rejected.
--
-- Only the catalog changes: no row is rewritten, and the constraints aren't checked
-- against existing rows while writers wait. V25 checks them.

alter table :"schema".tidings_bridges_seen add column topics boolean not null default false;

comment on column :"schema".tidings_bridges_seen.topics is
  'Whether it delivers notifications for topics; the bridge says so itself.';

-- Only adds a column, at the end.
create or replace view :"schema".tidings_bridges as
select
  b.bridge, b.version, b.role, b.address, b.client_address, b.started_at,
  b.state, b.since, b.connections, b.clock_offset, b.last_seen, b.readiness, b.reason, b.topics
from :"schema".tidings_bridges_seen as b
join pg_catalog.pg_stat_activity as a on a.pid = b.pid
where
  a.datid = (select oid from pg_catalog.pg_database where datname = current_database())
  and (
    a.backend_start = b.backend_start
    or (
      (a.backend_start is null or b.backend_start is null)
      and b.last_seen > now() - interval '1 minute'
    )
  );

comment on column :"schema".tidings_bridges.topics is
  'Whether it delivers notifications for topics; false if it is too old.';

-- Has a last value while all bridges of the last day deliver topics. An INSERT reads it in
-- the condition of its trigger, which is cheaper than calling a function
-- (V8__leave_the_bell_unrung.sql); without a value, the function looks for bridges.
-- tidings_report_topics (V26__memberships.sql) sets it.
create sequence :"schema".tidings_all_deliver_topics;

comment on sequence :"schema".tidings_all_deliver_topics is
  'Has a last value while no bridge is known that does not deliver topics (Tidings).';

-- The trigger's condition is evaluated with the privileges of the inserting role.
grant select on sequence :"schema".tidings_all_deliver_topics to public;

-- A bridge that reports for the first time has not said yet that it delivers topics. A
-- write to a sequence is visible to all writers at once, and never rolled back.
create function :"schema".tidings_note_bridge() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform setval(:'"schema".tidings_all_deliver_topics', 1, false);
  return null;
end
$$;

create trigger tidings_note_bridge
after insert on :"schema".tidings_bridges_seen
for each row
when (not new.topics)
execute function :"schema".tidings_note_bridge();

create function :"schema".tidings_refuse_topics() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  outdated text;
begin
  select b.version into outdated from :"schema".tidings_bridges as b where not b.topics limit 1;
  if found then
    raise exception using
      errcode = 'feature_not_supported',
      message = format(
        'a notification for a topic can''t be inserted while a bridge is connected that does not '
        'deliver topics (version %s)',
        outdated
      ),
      hint = 'Upgrade all bridges first: "select * from tidings_bridges" lists them.';
  end if;
  return null;
end
$$;

revoke all on function :"schema".tidings_note_bridge() from public;
revoke all on function :"schema".tidings_refuse_topics() from public;

comment on function :"schema".tidings_note_bridge() is
  'Has INSERTs for topics look for bridges that do not deliver them (Tidings).';
comment on function :"schema".tidings_refuse_topics() is
  'Rejects notifications for topics while a bridge is connected that does not deliver them (Tidings).';

-- Here the lock on notifications is taken.
alter table :"schema".notifications
  add column topic text,
  alter column user_id drop not null,
  add constraint notifications_one_addressee
    check ((user_id is null) <> (topic is null)) not valid,
  -- Names are exact, and shown in terminals: as in V18__printable_event_names.sql.
  add constraint notifications_topic_form
    check (octet_length(topic) between 1 and 255 and topic !~ E'[[:cntrl:]\\u007f-\\u009f]') not valid;

comment on column :"schema".notifications.user_id is
  'Whom it concerns, 1 to 255 bytes; null if it is for a topic.';
comment on column :"schema".notifications.topic is
  'The topic whose subscribers it concerns, 1 to 255 bytes, printable; * means everyone; null if it is for a user.';
comment on column :"schema".notifications.sent_at is
  'When it was first written to a connection; set by the bridge alone.';

-- For each row, because a transition table would copy every row; but usually only its
-- condition is evaluated. In every session, because bridges read rows
-- that are restored or replicated like any others.
create trigger tidings_refuse_topics
after insert on :"schema".notifications
for each row
when (
  new.topic is not null
  and pg_catalog.pg_sequence_last_value(:'"schema".tidings_all_deliver_topics'::regclass) is null
)
execute function :"schema".tidings_refuse_topics();

alter table :"schema".notifications enable always trigger tidings_refuse_topics;

-- The index for the pages of topics. On a table that has rows it is built before the
-- next migration, in no transaction, so that writers don't wait (sql/index_topics.sql).
do $migration$
begin
  if pg_catalog.pg_relation_size(:'"schema".notifications'::regclass) = 0 then
    create index notifications_topic_xid_id on :"schema".notifications (topic, xid, id)
    where topic is not null;
  end if;
end
$migration$;
