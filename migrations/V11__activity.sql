-- Activity of the bridges, which each reports every ten seconds, for the views of
-- V12__seen_from_sql.sql. Nothing else depends on it.

-- What each bridge has done in each minute of the last day.
create table :"schema".tidings_activity (
  minute timestamptz not null,
  bridge text not null,
  seen bigint not null,
  sent bigint not null,
  delays bigint[] not null,

  primary key (minute, bridge)
) with (fillfactor = 50);

comment on table :"schema".tidings_activity is
  'What each bridge has done in each minute of the last day; tidings_throughput and tidings_delay read it (Tidings).';
comment on column :"schema".tidings_activity.minute is 'When the minute began.';
comment on column :"schema".tidings_activity.bridge is 'Which bridge.';
comment on column :"schema".tidings_activity.seen is
  'New notifications that it has read; each bridge reads all of them.';
comment on column :"schema".tidings_activity.sent is 'Notifications whose sent_at it has set.';
comment on column :"schema".tidings_activity.delays is
  'How many were written how long after created_at, by the bounds that stand in tidings_delay.';

-- The bridges of the last day. Whether one is connected is determined by
-- tidings_bridges.
create table :"schema".tidings_bridges_seen (
  bridge text primary key,
  version text not null,
  role text,
  address text not null,
  client_address inet,
  started_at timestamptz not null,
  pid int,
  backend_start timestamptz,
  state text not null,
  since timestamptz not null,
  connections bigint not null,
  clock_offset interval,
  last_seen timestamptz not null
) with (fillfactor = 50);

comment on table :"schema".tidings_bridges_seen is
  'Which bridges there have been in the last day; tidings_bridges tells which are connected (Tidings).';
comment on column :"schema".tidings_bridges_seen.bridge is 'A name that each start of a bridge gives itself.';
comment on column :"schema".tidings_bridges_seen.version is 'Of the program.';
comment on column :"schema".tidings_bridges_seen.role is 'As whom it listens.';
comment on column :"schema".tidings_bridges_seen.address is 'Where it serves streams.';
comment on column :"schema".tidings_bridges_seen.client_address is
  'Where it connects from; null by a Unix socket.';
comment on column :"schema".tidings_bridges_seen.started_at is 'When it started.';
comment on column :"schema".tidings_bridges_seen.pid is 'The session that listens.';
comment on column :"schema".tidings_bridges_seen.backend_start is 'When that session began.';
comment on column :"schema".tidings_bridges_seen.state is
  'awake: it polls; asleep: it waits for the doorbell.';
comment on column :"schema".tidings_bridges_seen.since is 'Since when it is so.';
comment on column :"schema".tidings_bridges_seen.connections is 'Streams that are open.';
comment on column :"schema".tidings_bridges_seen.clock_offset is
  'How far the database''s clock is ahead of the bridge''s.';
comment on column :"schema".tidings_bridges_seen.last_seen is 'When it told so.';

-- A bridge's report. For a minute it contains everything the bridge has done in it, so
-- that repeating a report is harmless; without a minute there is nothing new to report.
create function :"schema".tidings_report(
  bridge text,
  version text,
  role text,
  address text,
  client_address inet,
  started_at timestamptz,
  pid int,
  backend_start timestamptz,
  state text,
  since timestamptz,
  connections bigint,
  clock_offset interval,
  minute timestamptz,
  seen bigint,
  sent bigint,
  delays bigint[]
) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  insert into :"schema".tidings_bridges_seen as b
  values (
    tidings_report.bridge, tidings_report.version, tidings_report.role, tidings_report.address,
    tidings_report.client_address, tidings_report.started_at, tidings_report.pid,
    tidings_report.backend_start, tidings_report.state, tidings_report.since,
    tidings_report.connections, tidings_report.clock_offset, clock_timestamp()
  )
  on conflict (bridge) do update
  set
    role = excluded.role,
    client_address = excluded.client_address,
    pid = excluded.pid,
    backend_start = excluded.backend_start,
    state = excluded.state,
    since = excluded.since,
    connections = excluded.connections,
    clock_offset = excluded.clock_offset,
    last_seen = excluded.last_seen;

  if tidings_report.minute is not null then
    insert into :"schema".tidings_activity as a
    values (
      tidings_report.minute, tidings_report.bridge, tidings_report.seen, tidings_report.sent,
      tidings_report.delays
    )
    on conflict (minute, bridge) do update
    set seen = excluded.seen, sent = excluded.sent, delays = excluded.delays;
  end if;

  -- A few of what is older than a day go each time, and nobody waits for it.
  delete from :"schema".tidings_activity
  where (minute, bridge) in (
    select a.minute, a.bridge
    from :"schema".tidings_activity as a
    where a.minute < now() - interval '1 day'
    order by a.minute
    limit 100
    for update skip locked
  );
  delete from :"schema".tidings_bridges_seen
  where bridge in (
    select b.bridge
    from :"schema".tidings_bridges_seen as b
    where b.last_seen < now() - interval '1 day'
    limit 100
    for update skip locked
  );
end
$$;

revoke all on function :"schema".tidings_report(
  text, text, text, text, inet, timestamptz, int, timestamptz, text, timestamptz, bigint, interval,
  timestamptz, bigint, bigint, bigint[]
) from public;

comment on function :"schema".tidings_report(
  text, text, text, text, inet, timestamptz, int, timestamptz, text, timestamptz, bigint, interval,
  timestamptz, bigint, bigint, bigint[]
) is 'Takes down what a bridge has done lately; the bridges call it (Tidings).';
