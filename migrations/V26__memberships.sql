-- Who is subscribed to which topic, how bridges learn that this changes, and where users
-- who connect without a last event id continue.

-- A membership is one row. Leaving deletes it, and joining again creates another one.
--
-- A notification belongs to a membership if the same transaction wrote both, or if it
-- was not visible yet in `since`. So a writer that began before the subscription and
-- commits after it is included, and what was visible before is not.
--
-- All columns are in the primary key's index, so that a page reads nothing else.
create table :"schema".topic_subscriptions (
  user_id text not null,
  topic text not null,
  since pg_snapshot not null default pg_current_snapshot(),
  xid xid8 not null default pg_current_xact_id(),

  constraint topic_subscriptions_pkey primary key (user_id, topic) include (since, xid),
  constraint topic_subscriptions_user_id_length check (octet_length(user_id) between 1 and 255),
  -- As in V24__topic.sql.
  constraint topic_subscriptions_topic_form
    check (octet_length(topic) between 1 and 255 and topic !~ E'[[:cntrl:]\\u007f-\\u009f]'),
  -- Everyone receives it already, and would receive each row twice.
  constraint topic_subscriptions_not_everyone check (topic <> '*')
);

-- The subscribers of a topic: to list them, and to remove a topic.
create index topic_subscriptions_topic on :"schema".topic_subscriptions (topic);

comment on table :"schema".topic_subscriptions is
  'Which users receive the notifications for which topics (Tidings).';
comment on column :"schema".topic_subscriptions.user_id is 'Who receives them.';
comment on column :"schema".topic_subscriptions.topic is 'The exact name of the topic.';
comment on column :"schema".topic_subscriptions.since is
  'What was visible when the user subscribed, and is therefore not delivered.';
comment on column :"schema".topic_subscriptions.xid is
  'The transaction that subscribed the user; set by its default alone.';

-- Memberships that have changed, for the bridges, which read this like notifications: by
-- transaction. It tells them of removals, which leave no row.
create table :"schema".tidings_membership_changes (
  id bigint generated always as identity primary key,
  user_id text,
  topic text,
  created_at timestamptz not null default now(),
  xid xid8 not null default pg_current_xact_id()
);

create index tidings_membership_changes_xid_id
on :"schema".tidings_membership_changes (xid, id);
create index tidings_membership_changes_created_at
on :"schema".tidings_membership_changes (created_at);

comment on table :"schema".tidings_membership_changes is
  'Which memberships bridges have to read again; kept for a day (Tidings).';
comment on column :"schema".tidings_membership_changes.user_id is
  'Whose memberships; null means everyone''s.';
comment on column :"schema".tidings_membership_changes.topic is
  'In which topic; null means all topics.';

-- Where users continue who connect without a last event id: up to where the
-- notifications for their topics were delivered, as the position of a stream
-- (src/domain/position.rs). Losing one causes duplicates.
--
-- What an update usually leaves alone comes first and last: Postgres doesn't log it. Nulls
-- take no space, and up to eight columns their bitmap takes none either.
create table :"schema".tidings_cursors (
  user_id text primary key,
  timeline int not null,
  written_on date not null default current_date,
  durable xid8 not null,
  floor xid8 not null,
  -- Transaction ids mean nothing in another cluster, and those from `durable` on may have
  -- been reused after a crash or a failover.
  since timestamptz not null,
  system_identifier bigint not null,
  open xid8[],

  constraint tidings_cursors_user_id_length check (octet_length(user_id) between 1 and 255)
) with (fillfactor = 50);

comment on table :"schema".tidings_cursors is
  'Up to where the notifications for topics were delivered to each user (Tidings).';
comment on column :"schema".tidings_cursors.floor is
  'Everything below has been delivered, except what is open.';
comment on column :"schema".tidings_cursors.open is
  'Transactions below of which rows may not have been delivered; null if there are none.';
comment on column :"schema".tidings_cursors.written_on is 'When it was last advanced.';
comment on column :"schema".tidings_cursors.durable is
  'The transaction id to which it falls back after a crash.';
comment on column :"schema".tidings_cursors.timeline is 'The incarnation of the server: its timeline.';
comment on column :"schema".tidings_cursors.since is
  'The incarnation of the server: tidings_incarnation.since.';
comment on column :"schema".tidings_cursors.system_identifier is 'The cluster.';

-- A removal that a bridge has seen must survive a crash: otherwise the membership would
-- be back, and rows that were passed over in the meantime would be missing. So if the
-- commit would not wait for the disk, it does.
create function :"schema".tidings_note_memberships() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'TRUNCATE' then
    insert into :"schema".tidings_membership_changes (user_id, topic) values (null, null);
  else
    insert into :"schema".tidings_membership_changes (user_id, topic)
    select c.user_id, c.topic
    from changed as c;
  end if;
  if tg_op <> 'INSERT' and current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'local', true);
  end if;
  return null;
end
$$;

-- A membership that changed its user or topic would have begun before.
create function :"schema".tidings_keep_membership() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'a membership can''t get another user or topic'
    using
      errcode = 'feature_not_supported',
      hint = 'Call unsubscribe() and subscribe().';
end
$$;

revoke all on function :"schema".tidings_note_memberships() from public;
revoke all on function :"schema".tidings_keep_membership() from public;

comment on function :"schema".tidings_note_memberships() is
  'Notes which memberships have changed (Tidings).';
comment on function :"schema".tidings_keep_membership() is
  'Rejects changes of the user or topic of a membership (Tidings).';

create trigger tidings_note_subscribed
after insert on :"schema".topic_subscriptions
referencing new table as changed
for each statement
execute function :"schema".tidings_note_memberships();

create trigger tidings_note_unsubscribed
after delete on :"schema".topic_subscriptions
referencing old table as changed
for each statement
execute function :"schema".tidings_note_memberships();

create trigger tidings_note_truncated
after truncate on :"schema".topic_subscriptions
for each statement
execute function :"schema".tidings_note_memberships();

create trigger tidings_keep_membership
before update on :"schema".topic_subscriptions
for each row
when (
  old.user_id operator(pg_catalog.<>) new.user_id or old.topic operator(pg_catalog.<>) new.topic
)
execute function :"schema".tidings_keep_membership();

-- Also in sessions with session_replication_role = replica: bridges learn of no
-- membership otherwise.
alter table :"schema".topic_subscriptions
  enable always trigger tidings_note_subscribed,
  enable always trigger tidings_note_unsubscribed,
  enable always trigger tidings_note_truncated,
  enable always trigger tidings_keep_membership;

-- Wakes bridges that are asleep, as INSERTs do (V15__notice_crashes_and_full_queues.sql):
-- they read the change together with the next rows, within a second even without this.
create function :"schema".tidings_ring_for_memberships() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  queue_usage double precision := 0;
begin
  if current_setting('tidings.doorbell', true) = 'off' then
    return null;
  end if;
  begin
    queue_usage := pg_notification_queue_usage();
  exception
    when insufficient_privilege then null;
  end;
  if queue_usage <= 0.5 then
    perform pg_notify(concat('tidings_', :'"schema".notifications'::regclass::oid), '');
  end if;
  return null;
end
$$;

revoke all on function :"schema".tidings_ring_for_memberships() from public;

comment on function :"schema".tidings_ring_for_memberships() is
  'Tells the bridges that memberships have changed (Tidings).';

create trigger tidings_ring_for_memberships
after insert on :"schema".tidings_membership_changes
for each statement
when (pg_sequence_last_value(:'"schema".tidings_bell'::regclass) is not null)
execute function :"schema".tidings_ring_for_memberships();

-- Subscribes a user to a topic. False: the user was subscribed before, and nothing
-- changes. A role that may call it can read every topic.
--
-- The INSERT may have waited for a transaction that unsubscribes the user. Its own
-- snapshot is from before, and with that, rows of the former membership would belong to
-- the new one too. Hence the second statement.
create function :"schema".subscribe(user_id text, topic text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
as $$
begin
  if subscribe.topic = '*' then
    raise exception 'every user receives the topic *; nobody can subscribe to it'
      using errcode = 'invalid_parameter_value';
  end if;
  insert into :"schema".topic_subscriptions (user_id, topic)
  values (subscribe.user_id, subscribe.topic)
  on conflict do nothing;
  if not found then
    return false;
  end if;
  update :"schema".topic_subscriptions as s
  set since = pg_current_snapshot()
  where s.user_id = subscribe.user_id and s.topic = subscribe.topic;
  return true;
end
$$;

-- Ends a membership: the user receives nothing more of the topic, not even what was
-- committed before and not delivered yet. False: the user was not subscribed.
create function :"schema".unsubscribe(user_id text, topic text) returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
as $$
begin
  delete from :"schema".topic_subscriptions as s
  where s.user_id = unsubscribe.user_id and s.topic = unsubscribe.topic;
  return found;
end
$$;

-- For applications whose user ids are numbers.
create function :"schema".subscribe(user_id bigint, topic text) returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select :"schema".subscribe(subscribe.user_id::text, subscribe.topic)
$$;

create function :"schema".unsubscribe(user_id bigint, topic text) returns boolean
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select :"schema".unsubscribe(unsubscribe.user_id::text, unsubscribe.topic)
$$;

-- For applications whose memberships bridges read from a relation of their own: has
-- them read again, those of one user or, with null, everyone's.
create function :"schema".tidings_memberships_changed(user_id text) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".tidings_membership_changes (user_id)
  values (tidings_memberships_changed.user_id)
$$;

-- Removes some of the changes that are older than a day, which every bridge has read;
-- skips those that another session is removing.
create function :"schema".tidings_prune_membership_changes(batch int) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
set enable_sort to off
as $$
  delete from :"schema".tidings_membership_changes as c
  where
    c.id = any (
      array(
        select e.id
        from :"schema".tidings_membership_changes as e
        where e.created_at < now() - interval '1 day'
        order by e.created_at
        limit batch
        for update skip locked
      )
    )
$$;

-- A bridge that delivers topics says so, after each tidings_report and in the same
-- statement: a row that only tidings_report has written would reject topics.
create function :"schema".tidings_report_topics(bridge text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update :"schema".tidings_bridges_seen as b
  set topics = true
  where b.bridge = tidings_report_topics.bridge and not b.topics;
  -- If all bridges of the last day deliver topics, INSERTs need not look for others. One
  -- that is reporting elsewhere for the first time has a lock on the table until its row can
  -- be seen, and one that reports later waits for this lock and takes the value away. It
  -- isn't waited for, because this session has a lock on the table already, and two that
  -- wait would be a deadlock: the next report tries again.
  if pg_sequence_last_value(:'"schema".tidings_all_deliver_topics'::regclass) is null then
    begin
      lock table :"schema".tidings_bridges_seen in share row exclusive mode nowait;
      if not exists (select from :"schema".tidings_bridges_seen as s where not s.topics) then
        perform setval(:'"schema".tidings_all_deliver_topics', 1);
      end if;
    exception
      when lock_not_available then
    end;
  end if;
  -- Every ten seconds: a million in 17 minutes.
  perform :"schema".tidings_prune_membership_changes(10000);
end
$$;

create function :"schema".send_to_topic(
  topic text,
  text text,
  event text default null,
  expires_at timestamptz default null,
  ref text default null
)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (topic, text, event, expires_at, ref)
  values (
    send_to_topic.topic,
    send_to_topic.text,
    send_to_topic.event,
    send_to_topic.expires_at,
    send_to_topic.ref
  )
  returning id
$$;

create function :"schema".send_to_everyone(
  text text,
  event text default null,
  expires_at timestamptz default null,
  ref text default null
)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (topic, text, event, expires_at, ref)
  values (
    '*',
    send_to_everyone.text,
    send_to_everyone.event,
    send_to_everyone.expires_at,
    send_to_everyone.ref
  )
  returning id
$$;

revoke all on function :"schema".subscribe(text, text) from public;
revoke all on function :"schema".subscribe(bigint, text) from public;
revoke all on function :"schema".unsubscribe(text, text) from public;
revoke all on function :"schema".unsubscribe(bigint, text) from public;
revoke all on function :"schema".tidings_memberships_changed(text) from public;
revoke all on function :"schema".tidings_prune_membership_changes(int) from public;
revoke all on function :"schema".tidings_report_topics(text) from public;
revoke all on function :"schema".send_to_topic(text, text, text, timestamptz, text) from public;
revoke all on function :"schema".send_to_everyone(text, text, timestamptz, text) from public;

comment on function :"schema".subscribe(text, text) is
  'Subscribes a user to a topic; false if the user was subscribed before (Tidings).';
comment on function :"schema".subscribe(bigint, text) is
  'Subscribes a user to a topic; false if the user was subscribed before (Tidings).';
comment on function :"schema".unsubscribe(text, text) is
  'Ends a user''s subscription to a topic; false if there was none (Tidings).';
comment on function :"schema".unsubscribe(bigint, text) is
  'Ends a user''s subscription to a topic; false if there was none (Tidings).';
comment on function :"schema".tidings_memberships_changed(text) is
  'Has bridges read a user''s memberships again, or with null everyone''s (Tidings).';
comment on function :"schema".tidings_prune_membership_changes(int) is
  'Removes rows of tidings_membership_changes that are older than a day (Tidings).';
comment on function :"schema".tidings_report_topics(text) is
  'Records that a bridge delivers topics; the bridges call it after tidings_report (Tidings).';
comment on function :"schema".send_to_topic(text, text, text, timestamptz, text) is
  'Notifies the subscribers of a topic and returns the notification''s id (Tidings).';
comment on function :"schema".send_to_everyone(text, text, timestamptz, text) is
  'Notifies everyone and returns the notification''s id (Tidings).';

-- Roles that were granted the functions of bridges by name, instead of through
-- tidings_bridge, get what bridges now need.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant execute on function %I.tidings_report_topics(text) to %s; '
        'grant select on table %1$I.topic_subscriptions, %1$I.tidings_membership_changes to %2$s; '
        'grant select, insert, update on table %1$I.tidings_cursors to %2$s',
        :'schema',
        a.grantee::regrole
      )
    from pg_proc as p
    cross join aclexplode(p.proacl) as a
    where
      p.pronamespace = to_regnamespace(quote_ident(:'schema'))
      and p.proname = 'tidings_disconnections_page'
      and a.grantee not in (0, p.proowner)
      and a.privilege_type = 'EXECUTE'
  loop
    execute statement;
  end loop;
end
$$;
