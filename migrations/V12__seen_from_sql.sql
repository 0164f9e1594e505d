-- SQL views for operators. The views run with their owner's privileges and show no text
-- of a notification.

-- The users who have pending rows.
--
-- The cost depends on the number of pending rows, not of stored ones: for each user it
-- starts at the floor below which nothing is left (V9__drained.sql), and it goes from
-- one user to the next in the index. The settings enforce this at any size of the table
-- and whatever its statistics are: without them, Postgres may read the whole table for
-- each user.
create function :"schema".tidings_pending_users()
returns table (user_id text, pending bigint, oldest timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set max_parallel_workers_per_gather = 0
as $$
  with recursive
    users (user_id) as (
      (select n.user_id from :"schema".notifications as n order by n.user_id limit 1)
      union all
      select (
        select n.user_id
        from :"schema".notifications as n
        where n.user_id > u.user_id
        order by n.user_id
        limit 1
      )
      from users as u
      where u.user_id is not null
    )
  select u.user_id, waiting.pending, waiting.oldest
  from users as u
  left join :"schema".tidings_drained as d
    on
      d.user_id = u.user_id
      and d.system_identifier = (select system_identifier from pg_control_system())
      -- As in backlog_page.sql.
      and d.xid > coalesce(
        (
          select r.xid
          from :"schema".tidings_reopened as r
          where r.xid < pg_snapshot_xmax(pg_current_snapshot())
          order by r.xid desc
          limit 1
        ),
        '0'
      )
  cross join lateral (
    select count(*) as pending, min(n.created_at) as oldest
    from :"schema".notifications as n
    where
      n.user_id = u.user_id
      and n.xid >= coalesce(d.xid, '0')
      and n.sent_at is null
      and (n.expires_at is null or n.expires_at > now())
  ) as waiting
  where u.user_id is not null and waiting.pending > 0
$$;

revoke all on function :"schema".tidings_pending_users() from public;

comment on function :"schema".tidings_pending_users() is
  'The users for whom notifications are waiting, and how many; tidings_pending reads it (Tidings).';

create view :"schema".tidings_pending as
select
  p.user_id,
  p.pending,
  p.oldest,
  -- An infinite time has no age.
  case when isfinite(p.oldest) then now() - p.oldest end as age
from :"schema".tidings_pending_users() as p;

comment on view :"schema".tidings_pending is
  'Notifications that are neither sent nor expired, by user; a row for each user who has some (Tidings).';
comment on column :"schema".tidings_pending.user_id is 'Whom they concern.';
comment on column :"schema".tidings_pending.pending is 'How many there are.';
comment on column :"schema".tidings_pending.oldest is 'When the oldest of them was created.';
comment on column :"schema".tidings_pending.age is 'How long ago that was.';

create view :"schema".tidings_pending_total as
select
  coalesce(sum(p.pending), 0)::bigint as pending,
  count(*) as users,
  min(p.oldest) as oldest,
  case when isfinite(min(p.oldest)) then now() - min(p.oldest) end as age
from :"schema".tidings_pending_users() as p;

comment on view :"schema".tidings_pending_total is
  'Notifications that are neither sent nor expired, in all; one row (Tidings).';
comment on column :"schema".tidings_pending_total.pending is 'How many there are.';
comment on column :"schema".tidings_pending_total.users is 'How many users they concern.';
comment on column :"schema".tidings_pending_total.oldest is 'When the oldest of them was created.';
comment on column :"schema".tidings_pending_total.age is 'How long ago that was.';

create view :"schema".tidings_throughput as
select
  m.minute,
  -- Each bridge reads all rows; one that started within the minute has read fewer.
  coalesce(max(a.seen), 0) as inserted,
  coalesce(sum(a.sent), 0)::bigint as sent
from
  generate_series(
    date_trunc('minute', now(), 'UTC') - interval '59 minutes',
    date_trunc('minute', now(), 'UTC'),
    interval '1 minute'
  ) as m (minute)
left join :"schema".tidings_activity as a on a.minute = m.minute
group by m.minute
order by m.minute;

comment on view :"schema".tidings_throughput is
  'Notifications of the last hour, by minute; the bridges tell every ten seconds (Tidings).';
comment on column :"schema".tidings_throughput.minute is 'When the minute began.';
comment on column :"schema".tidings_throughput.inserted is
  'How many became visible, as the bridge saw them that saw most.';
comment on column :"schema".tidings_throughput.sent is 'How many were marked as sent, by all bridges.';

-- The bounds are those of src/delivery/counters.rs.
create view :"schema".tidings_delay as
with
  bounds (bucket, low, high) as (
    values
      (1, interval '0', interval '200 microseconds'),
      (2, '200 microseconds', '500 microseconds'),
      (3, '500 microseconds', '1 millisecond'),
      (4, '1 millisecond', '2 milliseconds'),
      (5, '2 milliseconds', '5 milliseconds'),
      (6, '5 milliseconds', '10 milliseconds'),
      (7, '10 milliseconds', '20 milliseconds'),
      (8, '20 milliseconds', '50 milliseconds'),
      (9, '50 milliseconds', '100 milliseconds'),
      (10, '100 milliseconds', '200 milliseconds'),
      (11, '200 milliseconds', '500 milliseconds'),
      (12, '500 milliseconds', '1 second'),
      (13, '1 second', '2 seconds'),
      (14, '2 seconds', '5 seconds'),
      (15, '5 seconds', '10 seconds'),
      (16, '10 seconds', '20 seconds'),
      (17, '20 seconds', '60 seconds'),
      -- Anything that took longer counts as a minute.
      (18, '60 seconds', '60 seconds')
  ),
  counted as (
    select a.minute, d.bucket, sum(d.count)::float8 as count
    from :"schema".tidings_activity as a
    cross join lateral unnest(a.delays) with ordinality as d (count, bucket)
    where a.minute > date_trunc('minute', now(), 'UTC') - interval '1 hour'
    group by a.minute, d.bucket
    having sum(d.count) > 0
  ),
  summed as (
    select
      c.minute, c.count, b.low, b.high - b.low as width,
      sum(c.count) over (partition by c.minute order by c.bucket) - c.count as before,
      sum(c.count) over (partition by c.minute) as total
    from counted as c
    join bounds as b on b.bucket = c.bucket
  )
select
  m.minute,
  coalesce(max(s.total), 0)::bigint as sent,
  min(s.low + s.width * ((0.5 * s.total - s.before) / s.count))
    filter (where s.before < 0.5 * s.total and 0.5 * s.total <= s.before + s.count) as p50,
  min(s.low + s.width * ((0.99 * s.total - s.before) / s.count))
    filter (where s.before < 0.99 * s.total and 0.99 * s.total <= s.before + s.count) as p99
from
  generate_series(
    date_trunc('minute', now(), 'UTC') - interval '59 minutes',
    date_trunc('minute', now(), 'UTC'),
    interval '1 minute'
  ) as m (minute)
left join summed as s on s.minute = m.minute
group by m.minute
order by m.minute;

comment on view :"schema".tidings_delay is
  'How long notifications of users who were connected took from created_at to the connection, in the last hour by minute (Tidings).';
comment on column :"schema".tidings_delay.minute is 'When the minute began.';
comment on column :"schema".tidings_delay.sent is
  'How often one was written to a connection that had been open before it was created.';
comment on column :"schema".tidings_delay.p50 is
  'Half of them took no longer, by the database''s clock; as exact as 1, 2, 5, 10 and so on are apart.';
comment on column :"schema".tidings_delay.p99 is
  '99 of 100 took no longer. created_at is when the transaction began that inserted it.';

-- A role that may not see other users' sessions (pg_read_all_stats) still sees their
-- process ids, and nothing more; the process id of a session that has ended may be
-- reused by another one.
create view :"schema".tidings_bridges as
select
  b.bridge, b.version, b.role, b.address, b.client_address, b.started_at,
  b.state, b.since, b.connections, b.clock_offset, b.last_seen
from :"schema".tidings_bridges_seen as b
join pg_stat_activity as a on a.pid = b.pid
where
  a.datid = (select oid from pg_database where datname = current_database())
  and (
    a.backend_start = b.backend_start
    or (
      (a.backend_start is null or b.backend_start is null)
      and b.last_seen > now() - interval '1 minute'
    )
  );

comment on view :"schema".tidings_bridges is
  'The bridges that are connected; each tells every ten seconds how it is (Tidings).';
comment on column :"schema".tidings_bridges.bridge is 'A name that each start of a bridge gives itself.';
comment on column :"schema".tidings_bridges.version is 'Of the program.';
comment on column :"schema".tidings_bridges.role is 'As whom it listens.';
comment on column :"schema".tidings_bridges.address is 'Where it serves streams.';
comment on column :"schema".tidings_bridges.client_address is
  'Where it connects from; null by a Unix socket.';
comment on column :"schema".tidings_bridges.started_at is 'When it started.';
comment on column :"schema".tidings_bridges.state is
  'awake: it polls, and writers need not ring; asleep: it waits for the doorbell.';
comment on column :"schema".tidings_bridges.since is 'Since when it is so.';
comment on column :"schema".tidings_bridges.connections is 'Streams that are open.';
comment on column :"schema".tidings_bridges.clock_offset is
  'How far the database''s clock is ahead of the bridge''s.';
comment on column :"schema".tidings_bridges.last_seen is
  'When it told so; more than half a minute ago, it hangs or may not write.';

create view :"schema".tidings_size as
select
  c.relname::text as name,
  case c.relkind when 'r' then 'table' else 'index' end as kind,
  t.relname::text as "table",
  -- Negative: never analyzed.
  case when c.reltuples >= 0 then c.reltuples::bigint end as rows,
  case c.relkind when 'r' then pg_stat_get_live_tuples(c.oid) end as live,
  case c.relkind when 'r' then pg_stat_get_dead_tuples(c.oid) end as dead,
  size.bytes,
  pg_size_pretty(size.bytes) as size,
  case when c.reltuples > 0 then round(size.bytes / c.reltuples)::bigint end as bytes_per_row,
  case c.relkind
    when 'r'
    then greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid))
  end as last_vacuum,
  case c.relkind
    when 'r'
    then greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid))
  end as last_analyze
from pg_class as ours
join pg_class as t
  on t.relnamespace = ours.relnamespace and t.relowner = ours.relowner and t.relkind = 'r'
cross join lateral (
  select t.oid
  union all
  select i.indexrelid from pg_index as i where i.indrelid = t.oid
) as part (oid)
join pg_class as c on c.oid = part.oid
cross join lateral (
  select case c.relkind when 'r' then pg_table_size(c.oid) else pg_relation_size(c.oid) end as bytes
) as size
where
  ours.oid = :'"schema".notifications'::regclass
  and (t.relname in ('notifications', 'stream_tickets') or t.relname like 'tidings\_%')
order by t.relname, c.relkind = 'i', c.relname;

comment on view :"schema".tidings_size is
  'How large each table of Tidings is, and each of its indexes (Tidings).';
comment on column :"schema".tidings_size.name is 'What it is called.';
comment on column :"schema".tidings_size.kind is 'table or index.';
comment on column :"schema".tidings_size."table" is 'The table that it belongs to.';
comment on column :"schema".tidings_size.rows is
  'As of the last vacuum or analyze; null if there was none.';
comment on column :"schema".tidings_size.live is 'Rows of a table, as the statistics count them.';
comment on column :"schema".tidings_size.dead is 'Versions of rows that wait for vacuum.';
comment on column :"schema".tidings_size.bytes is 'On disk; of a table with its long texts.';
comment on column :"schema".tidings_size.size is 'The same, to read.';
comment on column :"schema".tidings_size.bytes_per_row is
  'Of these, for each row. Where it keeps growing while the rows stay alike, the rest is bloat.';
comment on column :"schema".tidings_size.last_vacuum is 'By hand or by autovacuum.';
comment on column :"schema".tidings_size.last_analyze is 'By hand or by autovacuum.';

create view :"schema".tidings_queue as
select
  pg_notification_queue_usage() as usage,
  h.held_by,
  h.pid,
  h.name,
  h.transactions,
  h.since,
  now() - h.since as age,
  h.state
from (select) as one
left join lateral (
  select *
  from (
    select
      'session' as held_by,
      s.pid,
      s.application_name as name,
      greatest(age(s.backend_xmin), age(s.backend_xid)) as transactions,
      s.xact_start as since,
      s.state
    from pg_stat_activity as s
    where
      s.datid = (select oid from pg_database where datname = current_database())
      and s.pid <> pg_backend_pid()
      -- Autovacuum's workers belong to no user, and one vacuum doesn't affect another.
      and s.usesysid is not null
      and (s.backend_xmin is not null or s.backend_xid is not null)
    union all
    select 'prepared transaction', null, p.gid, age(p.transaction), p.prepared, null
    from pg_prepared_xacts as p
    where p.database = current_database()
    union all
    select
      'replication slot', r.active_pid, r.slot_name::text, age(r.xmin), null,
      case when r.active then 'active' else 'inactive' end
    from pg_replication_slots as r
    where r.xmin is not null
  ) as holders
  order by transactions desc, since
  limit 1
) as h on true;

comment on view :"schema".tidings_queue is
  'How full the queue of NOTIFY is, and what keeps vacuum in this database from removing dead rows; one row (Tidings).';
comment on column :"schema".tidings_queue.usage is
  'Of the cluster''s queue, from 0 to 1; at 1 every commit that rings fails.';
comment on column :"schema".tidings_queue.held_by is
  'session, prepared transaction or replication slot; null if nothing is running.';
comment on column :"schema".tidings_queue.pid is 'The session, if it is one.';
comment on column :"schema".tidings_queue.name is
  'Its application_name, or what the prepared transaction or the slot is called.';
comment on column :"schema".tidings_queue.transactions is
  'How many transactions have begun since; dead rows of these stay.';
comment on column :"schema".tidings_queue.since is
  'When it began; null for whoever may not see it (pg_read_all_stats).';
comment on column :"schema".tidings_queue.age is 'How long ago that was.';
comment on column :"schema".tidings_queue.state is
  'Of the session; idle in transaction has been forgotten by somebody.';
