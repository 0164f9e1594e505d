-- Ends everyone's streams with one row, and lets bridges read disconnections in pages:
-- reading all of them in one query failed once millions of users had been logged out
-- within a day.
--
-- A row of tidings_disconnections now means:
--
-- | user_id | ticket | which streams end                              |
-- | ------- | ------ | ---------------------------------------------- |
-- | a user  | a hash | the user's that were opened with this ticket   |
-- | a user  | ''     | the user's that were opened with any ticket    |
-- | a user  | null   | all of the user's                              |
-- | null    | ''     | everyone's that were opened with any ticket    |
-- | null    | null   | everyone's                                     |
--
-- Earlier bridges read them with tidings_disconnections_since, treat '' as null, and
-- skip rows without a user.

-- One page of the rows that are new since a position (as in sql/tail_page.sql): rows of
-- transactions from `after` on, and of the transactions in `open` the rows after the
-- ids in `read_to`. At most `most` rows, ordered by (xid, id).
--
-- If a new row ends everyone's streams, or without `after`, the reader needs none of
-- the other rows: it gets one row without user and ticket, with the key of the last
-- visible row, and continues from there. This also holds for a reader that is a million
-- rows behind when everyone is disconnected.
--
-- The settings make both scans use the index (xid, id), whatever the table's statistics
-- are.
create function :"schema".tidings_disconnections_page(
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

revoke all on function :"schema".tidings_disconnections_page(xid8, xid8[], bigint[], int) from public;

comment on function :"schema".tidings_disconnections_page(xid8, xid8[], bigint[], int) is
  'Which streams were to end since a position, a page at a time; the bridges call it (Tidings).';

-- A role that was granted the earlier function by name can read the same with this one.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant execute on function %I.tidings_disconnections_page(xid8, xid8[], bigint[], int) to %s',
        :'schema',
        a.grantee::regrole
      )
    from pg_proc as p
    cross join aclexplode(p.proacl) as a
    where
      p.oid = :'"schema".tidings_disconnections_since(pg_snapshot)'::regprocedure
      and a.grantee not in (0, p.proowner)
      and a.privilege_type = 'EXECUTE'
  loop
    execute statement;
  end loop;
end
$$;

-- Removes some of the rows that are older than a day, which every bridge has read;
-- skips those that another session is removing.
create function :"schema".tidings_prune_disconnections(batch int) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
set enable_bitmapscan to off
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

revoke all on function :"schema".tidings_prune_disconnections(int) from public;

comment on function :"schema".tidings_prune_disconnections(int) is
  'Removes rows of tidings_disconnections that are older than a day (Tidings).';

-- A plan made while the tables were empty is kept for the session, and one statement
-- may call this for millions of users: without the setting, each call could read a
-- whole table.
create or replace function :"schema".disconnect_user(user_id text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
as $$
begin
  if disconnect_user.user_id is null then
    raise exception 'disconnect_user needs a user_id'
      using errcode = 'null_value_not_allowed', hint = 'For all users call disconnect_everyone().';
  end if;
  -- Once a transaction: a statement that calls this for a million users would
  -- pass over all that it has removed before each time.
  if not exists (
    select from :"schema".tidings_disconnections as d where d.xid = pg_current_xact_id()
  )
  then
    perform :"schema".tidings_prune_disconnections(100);
  end if;
  delete from :"schema".stream_tickets as t where t.user_id = disconnect_user.user_id;
  -- No stream is of a user whose name is longer.
  if octet_length(disconnect_user.user_id) between 1 and 255 then
    insert into :"schema".tidings_disconnections (user_id) values (disconnect_user.user_id);
  end if;
end
$$;

-- Ends every stream on every bridge and removes all tickets. One row, however many
-- users there are.
--
-- Tokens that the application has signed remain valid until they expire, so clients
-- that use them reconnect: change the signing secret first to prevent that.
create function :"schema".disconnect_everyone() returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform :"schema".tidings_prune_disconnections(100);
  -- First, so that removing the tickets adds no rows.
  insert into :"schema".tidings_disconnections (user_id) values (null);
  delete from :"schema".stream_tickets;
end
$$;

revoke all on function :"schema".disconnect_everyone() from public;

comment on function :"schema".disconnect_everyone() is
  'Ends every stream on every bridge within seconds and removes all tickets (Tidings).';

-- A statement that removes or changes tickets adds a thousand rows at most. Beyond
-- that, streams that other tickets of the same users opened end too, and their clients
-- reconnect with their tickets.
create or replace function :"schema".tidings_end_ticket_streams() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
as $$
declare
  most constant int := 1000;
  counted int;
begin
  -- A row of this transaction ends everyone's streams already.
  if exists (
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

-- As in V5__create_stream_tickets.sql, except that expired tickets are removed once per
-- transaction, because a statement that creates a million tickets would otherwise scan
-- all the removed ones each time. A caller that forges the setting leaves them to the
-- bridges.
create or replace function :"schema".create_stream_ticket(user_id text, ttl interval default '1 hour')
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan to off
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

  if current_setting('tidings.tickets_pruned', true) is distinct from pg_current_xact_id()::text
  then
    delete from :"schema".stream_tickets
    where hash in (
      select t.hash
      from :"schema".stream_tickets as t
      where t.expires_at < created
      order by t.expires_at
      limit 10
      for update skip locked
    );
    perform set_config('tidings.tickets_pruned', pg_current_xact_id()::text, true);
  end if;

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

-- As in V11__activity.sql; it also removes old disconnections and expired tickets,
-- since nothing else may do so after millions were added at once.
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

-- Logging a user out waits while these are created: a second for each million users
-- that were logged out within the last day. Nothing waits on `notifications`.
create index tidings_disconnections_xid_id on :"schema".tidings_disconnections (xid, id);
create index tidings_disconnections_everyone on :"schema".tidings_disconnections (xid)
where user_id is null;

-- For an instant, reads wait too.
alter table :"schema".tidings_disconnections
  alter column user_id drop not null,
  add constraint tidings_disconnections_whose
    check (user_id is not null or ticket is null or ticket = '') not valid;

-- The new index serves the same queries.
drop index :"schema".tidings_disconnections_xid;

comment on column :"schema".tidings_disconnections.user_id is
  'Whose streams end; null means everyone''s.';
comment on column :"schema".tidings_disconnections.ticket is
  'Hash of the ticket whose streams end; empty means any ticket, null means every stream.';
