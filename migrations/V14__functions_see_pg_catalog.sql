-- Functions have only pg_catalog on their search path and qualify everything else.
--
-- Before, their search path was this schema. There, a function or operator that any
-- role with CREATE made took precedence over one of pg_catalog with less exact argument
-- types: format(text, text) over format(text, variadic "any"). It ran with the
-- privileges of tidings_owner.
--
-- The functions that a view calls were resolved when it was created, so the views are
-- recreated. Defaults, constraints and conditions of triggers call only functions that
-- pg_catalog has with exactly these types, and these always took precedence.
--
-- Old tickets, disconnections and records of tidings_reopened are removed by the
-- bridges, every ten seconds, and no longer by the transactions that add new ones:
-- these failed with serialization errors where an application's default isolation is
-- serializable.

create or replace function :"schema".send_notification(user_id text, text text, event text default null)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (user_id, text, event)
  values (send_notification.user_id, send_notification.text, send_notification.event)
  returning id
$$;

create or replace function :"schema".send_notification(user_id bigint, text text, event text default null)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (user_id, text, event)
  values (send_notification.user_id::text, send_notification.text, send_notification.event)
  returning id
$$;

create or replace function :"schema".tidings_pruned_through() returns xid8
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select xid from :"schema".tidings_pruned where only_row and xid > '0'
$$;

create or replace function :"schema".tidings_reopen() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into :"schema".tidings_reopened (xid) values (pg_current_xact_id()) on conflict do nothing;
  return null;
end
$$;

create or replace function :"schema".tidings_prune_batch(
  sent_before interval,
  after bigint default 0,
  batch int default 500
)
returns table (removed bigint, looked_to bigint, looked_to_created_at timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout to '1s'
set enable_seqscan to off
set enable_bitmapscan to off
set enable_indexscan to on
set enable_indexonlyscan to on
set enable_sort to off
as $$
declare
  sent_until timestamptz;
  expired_until constant timestamptz := now() - interval '1 hour';
  -- Rows of the future were restored from another cluster, and wait to be
  -- taken over.
  horizon constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
  any_old boolean;
  sent_ids bigint[];
  expired_ids bigint[];
  users text[];
  youngest xid8;
begin
  if sent_before is null or sent_before < interval '1 hour' then
    raise exception 'rows stay for an hour at least after they were sent'
      using errcode = 'invalid_parameter_value',
        hint = 'Pass an interval such as ''30 days'' as sent_before.';
  end if;
  if batch is null or batch not between 1 and 10000 then
    raise exception 'a batch has 1 to 10,000 rows'
      using errcode = 'invalid_parameter_value';
  end if;
  sent_until := now() - sent_before;

  -- Who has this row is the one who removes.
  perform from :"schema".tidings_pruned where only_row for update skip locked;
  if not found then
    return;
  end if;

  select max(w.id), max(w.created_at), coalesce(bool_or(w.created_at < sent_until), false)
  into looked_to, looked_to_created_at, any_old
  from (
    select n.id, n.created_at
    from :"schema".notifications as n
    where n.id > coalesce(tidings_prune_batch.after, 0)
    order by n.id
    limit batch
  ) as w;

  if any_old then
    sent_ids := array(
      select n.id
      from :"schema".notifications as n
      where
        n.id > coalesce(tidings_prune_batch.after, 0)
        and n.id <= looked_to
        and n.created_at < sent_until
        and n.sent_at < sent_until
        and n.xid < horizon
      order by n.id
      for update skip locked
    );
  end if;
  expired_ids := array(
    select n.id
    from :"schema".notifications as n
    where n.expires_at < expired_until and n.created_at < expired_until and n.xid < horizon
    order by n.expires_at
    limit batch
    for update skip locked
  );

  -- Who comes back is told of a gap where rows are gone that would have been
  -- delivered; one that has expired would not have been.
  with gone as (
    delete from :"schema".notifications as n
    where n.id = any (sent_ids || expired_ids)
    returning n.user_id, n.xid, n.expires_at
  )
  select
    count(*),
    array_agg(distinct g.user_id),
    (
      array_agg(g.xid order by g.xid desc)
      filter (where g.expires_at is null or g.expires_at > now())
    )[1]
  into removed, users, youngest
  from gone as g;

  update :"schema".tidings_pruned as p set xid = youngest where p.only_row and p.xid < youngest;

  -- How far users are drained who have no rows any more. Asked for from the
  -- youngest row, which is there as long as there is any.
  delete from :"schema".tidings_drained as d
  where
    d.user_id = any (
      array(
        select e.user_id
        from :"schema".tidings_drained as e
        where
          e.user_id = any (users)
          and (
            select n.id
            from :"schema".notifications as n
            where n.user_id = e.user_id
            order by n.user_id desc, n.xid desc, n.id desc
            limit 1
          ) is null
        for update skip locked
      )
    );

  -- Their own writers remove these too, as long as there are any.
  delete from :"schema".stream_tickets as t
  where
    t.hash = any (
      array(
        select u.hash
        from :"schema".stream_tickets as u
        where u.expires_at < expired_until
        order by u.expires_at
        limit batch
        for update skip locked
      )
    );
  delete from :"schema".tidings_disconnections as d
  where
    d.id = any (
      array(
        select e.id
        from :"schema".tidings_disconnections as e
        where e.created_at < now() - interval '1 day'
        order by e.created_at
        limit batch
        for update skip locked
      )
    );

  if not any_old then
    looked_to := case when cardinality(expired_ids) = batch then coalesce(after, 0) end;
  end if;
  return next;
exception
  when lock_not_available then
    return;
end
$$;

-- It sets no search path, since it ends its transactions: all names in it are
-- qualified, including operators.
create or replace procedure :"schema".tidings_prune(sent_before interval, batch int default 500)
language plpgsql
as $$
declare
  began pg_catalog.timestamptz;
  after pg_catalog.int8 := 0;
  removed pg_catalog.int8 := 0;
  step record;
begin
  loop
    began := pg_catalog.clock_timestamp();
    select p.* into step
    from :"schema".tidings_prune_batch(sent_before, after, batch) as p;
    -- Somebody else is at it.
    exit when not found;
    commit;
    removed := removed operator(pg_catalog.+) step.removed;
    after := step.looked_to;
    exit when after is null;
    perform pg_catalog.pg_sleep(
      4::pg_catalog.float8 operator(pg_catalog.*) pg_catalog.date_part(
        'epoch', pg_catalog.clock_timestamp() operator(pg_catalog.-) began
      )
    );
  end loop;
  raise notice 'tidings_prune: % rows removed', removed;
end
$$;

create or replace function :"schema".tidings_pending_users()
returns table (user_id text, pending bigint, oldest timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
set enable_indexscan to on
set enable_indexonlyscan to on
set jit to off
set max_parallel_workers_per_gather to 0
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

create or replace function :"schema".tidings_disconnections_since(seen pg_snapshot)
returns table (user_id text, ticket bytea)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.user_id, d.ticket
  from :"schema".tidings_disconnections as d
  where d.xid >= pg_snapshot_xmin(seen)
    -- A row that was restored from another cluster may lie in the future.
    and d.xid < pg_snapshot_xmax(pg_current_snapshot())
    and not pg_visible_in_snapshot(d.xid, seen)
$$;

create or replace function :"schema".tidings_disconnections_page(
  after xid8,
  open xid8[],
  read_to bigint[],
  most int
)
returns table (xid xid8, id bigint, user_id text, ticket bytea)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
set enable_indexscan to on
set enable_indexonlyscan to on
set plan_cache_mode to force_generic_plan
as $$
#variable_conflict use_column
declare
  -- A row that was restored from another cluster may lie in the future.
  horizon constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
begin
  if after is null
    or exists (
      select
      from :"schema".tidings_disconnections as d
      where
        d.user_id is null
        and d.ticket is null
        and d.xid >= after
        and d.xid < horizon
    )
    or exists (
      select
      from unnest(open, read_to) as o (xid, id)
      join :"schema".tidings_disconnections as d on d.xid = o.xid and d.id > o.id
      where d.user_id is null and d.ticket is null
    )
  then
    return query
    select d.xid, d.id, null::text, null::bytea
    from :"schema".tidings_disconnections as d
    where d.xid < horizon
    order by d.xid desc, d.id desc
    limit 1;
    return;
  end if;

  return query
  -- No stream is of a user whose name is longer than 255 bytes.
  select f.xid, f.id, left(f.user_id, 256), f.ticket
  from (
    (
      select m.*
      from unnest(open, read_to) as o (xid, id)
      cross join lateral (
        select d.xid, d.id, d.user_id, d.ticket
        from :"schema".tidings_disconnections as d
        where d.xid = o.xid and d.id > o.id
        order by d.xid, d.id
        limit most
      ) as m
      limit most
    )
    union all
    (
      select d.xid, d.id, d.user_id, d.ticket
      from :"schema".tidings_disconnections as d
      where d.xid >= after and d.xid < horizon
      order by d.xid, d.id
      limit most
    )
  ) as f
  order by f.xid, f.id
  limit most;
end
$$;

create or replace function :"schema".tidings_prune_disconnections(batch int) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
set enable_indexscan to on
set enable_indexonlyscan to on
set enable_sort to off
as $$
  delete from :"schema".tidings_disconnections as d
  where
    d.id = any (
      array(
        select e.id
        from :"schema".tidings_disconnections as e
        where e.created_at < now() - interval '1 day'
        order by e.created_at
        limit batch
        for update skip locked
      )
    )
$$;

create or replace function :"schema".disconnect_user(user_id text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
set enable_indexscan to on
set enable_indexonlyscan to on
as $$
begin
  if disconnect_user.user_id is null then
    raise exception 'disconnect_user needs a user_id'
      using errcode = 'null_value_not_allowed', hint = 'For all users call disconnect_everyone().';
  end if;
  delete from :"schema".stream_tickets as t where t.user_id = disconnect_user.user_id;
  -- No stream is of a user whose name is longer.
  if octet_length(disconnect_user.user_id) between 1 and 255 then
    insert into :"schema".tidings_disconnections (user_id) values (disconnect_user.user_id);
  end if;
end
$$;

create or replace function :"schema".disconnect_user(user_id bigint) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select :"schema".disconnect_user(disconnect_user.user_id::text)
$$;

create or replace function :"schema".disconnect_everyone() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- First, so that removing the tickets adds no rows.
  insert into :"schema".tidings_disconnections (user_id) values (null);
  perform set_config('tidings.disconnected_everyone', pg_current_xact_id()::text, true);
  delete from :"schema".stream_tickets;
end
$$;

create or replace function :"schema".tidings_end_ticket_streams() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
set enable_indexscan to on
set enable_indexonlyscan to on
as $$
declare
  most constant int := 1000;
  counted int;
begin
  -- A row of this transaction ends everyone's streams already. The table is read only
  -- if disconnect_everyone() says so: to read it would make it conflict with other
  -- serializable transactions. Anyone can set the setting, so it is not trusted alone.
  if current_setting('tidings.disconnected_everyone', true) = pg_current_xact_id()::text
    and exists (
      select
      from :"schema".tidings_disconnections as d
      where d.xid = pg_current_xact_id() and d.user_id is null and d.ticket is null
    )
  then
    return null;
  end if;

  if tg_op = 'TRUNCATE' then
    insert into :"schema".tidings_disconnections (user_id, ticket)
    select null, ''
    where exists (select from :"schema".stream_tickets as t where t.expires_at > clock_timestamp());
    return null;
  end if;

  -- The streams of one that has expired have ended by themselves.
  select count(*)
  into counted
  from (select from gone as g where g.expires_at > clock_timestamp() limit most + 1) as few;
  if counted <= most then
    insert into :"schema".tidings_disconnections (user_id, ticket)
    select g.user_id, g.hash from gone as g where g.expires_at > clock_timestamp();
    return null;
  end if;

  select count(*)
  into counted
  from (
    select distinct g.user_id
    from gone as g
    where g.expires_at > clock_timestamp()
    limit most + 1
  ) as few;
  if counted <= most then
    insert into :"schema".tidings_disconnections (user_id, ticket)
    select distinct g.user_id, ''::bytea from gone as g where g.expires_at > clock_timestamp();
  else
    insert into :"schema".tidings_disconnections (user_id, ticket) values (null, '');
  end if;
  return null;
end
$$;

create or replace function :"schema".create_stream_ticket(user_id text, ttl interval default '1 hour')
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  ticket text := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
  -- Not the beginning of the transaction, which may have lasted.
  created timestamptz := clock_timestamp();
  seconds double precision;
begin
  if create_stream_ticket.user_id is null
    or octet_length(create_stream_ticket.user_id) not between 1 and 255
  then
    raise exception 'a ticket needs a user_id of 1 to 255 bytes'
      using errcode = 'invalid_parameter_value';
  end if;
  -- Compared as intervals first: an infinite one has no seconds.
  if ttl is null or ttl <= interval '0' or ttl > interval '24 hours' then
    raise exception 'a ticket lives for more than nothing and 24 hours at most'
      using errcode = 'invalid_parameter_value',
        hint = 'Pass an interval such as ''1 hour'' as ttl.';
  end if;
  -- In seconds, because a day has 25 hours when the clocks are put back.
  seconds := extract(epoch from ttl);

  insert into :"schema".stream_tickets (hash, user_id, created_at, expires_at)
  values (
    sha256(convert_to(ticket, 'UTF8')),
    create_stream_ticket.user_id,
    created,
    created + seconds * interval '1 second'
  );
  return ticket;
end
$$;

create or replace function :"schema".tidings_report(
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
  -- Only the youngest matters. One that was restored from another cluster may lie in
  -- the future.
  delete from :"schema".tidings_reopened
  where xid in (
    select r.xid
    from :"schema".tidings_reopened as r
    where
      r.xid < (
        select y.xid
        from :"schema".tidings_reopened as y
        where y.xid < pg_snapshot_xmax(pg_current_snapshot())
        order by y.xid desc
        limit 1
      )
    order by r.xid
    limit 10000
    for update skip locked
  );
  -- Every ten seconds: a million of each in 17 minutes.
  perform :"schema".tidings_prune_disconnections(10000);
  delete from :"schema".stream_tickets
  where
    hash = any (
      array(
        select t.hash
        from :"schema".stream_tickets as t
        where t.expires_at < now() - interval '1 hour'
        order by t.expires_at
        limit 10000
        for update skip locked
      )
    );
end
$$;

create or replace view :"schema".tidings_pending as
select
  p.user_id,
  p.pending,
  p.oldest,
  -- An infinite time has no age.
  case when isfinite(p.oldest) then now() - p.oldest end as age
from :"schema".tidings_pending_users() as p;

create or replace view :"schema".tidings_pending_total as
select
  coalesce(sum(p.pending), 0)::bigint as pending,
  count(*) as users,
  min(p.oldest) as oldest,
  case when isfinite(min(p.oldest)) then now() - min(p.oldest) end as age
from :"schema".tidings_pending_users() as p;

create or replace view :"schema".tidings_throughput as
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

-- The bounds are those of src/delivery/counters.rs.
create or replace view :"schema".tidings_delay as
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

-- A role that may not see other users' sessions (pg_read_all_stats) still sees their
-- process ids, and nothing more; the process id of a session that has ended may be
-- reused by another one.
create or replace view :"schema".tidings_bridges as
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

create or replace view :"schema".tidings_size as
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

create or replace view :"schema".tidings_queue as
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
