-- A row that can't be deleted no longer stops the removal of all others: it is skipped,
-- recorded, and retried later. Such rows are referenced by a foreign key without ON
-- DELETE, or a trigger or rule of the application keeps them.

-- The rows that could not be removed, and why. Both kinds of prunable rows, sent and
-- expired, are selected again in every walk, so without this record a walk would try
-- the same rows over and over, and the expired ones, which are read from the front of
-- an index, would hide those behind them.
create table :"schema".tidings_prune_failures (
  id bigint primary key,
  tries int not null,
  retry_at timestamptz not null,
  -- A hash of everything that could have kept a row of notifications when it was tried
  -- (see tidings_prune_batch). Once that has changed, the row is retried at once.
  obstacles bigint,
  sqlstate text not null,
  -- Null unless a constraint was violated: schema.table.constraint.
  "constraint" text,
  reason text not null
);

create index tidings_prune_failures_retry_at
on :"schema".tidings_prune_failures (retry_at);

comment on table :"schema".tidings_prune_failures is
  'Notifications that could not be removed although they have had their time, and why (Tidings).';
comment on column :"schema".tidings_prune_failures.id is 'The notification.';
comment on column :"schema".tidings_prune_failures.tries is 'How often it was tried.';
comment on column :"schema".tidings_prune_failures.retry_at is
  'When it is tried again: an hour later at first, a day later at most; sooner if foreign keys, triggers or rules of the table change.';
comment on column :"schema".tidings_prune_failures.obstacles is
  'A hash of the foreign keys, triggers and rules that took part.';
comment on column :"schema".tidings_prune_failures.sqlstate is 'The error code.';
comment on column :"schema".tidings_prune_failures."constraint" is
  'The constraint that was violated, with its schema and table; null for any other error.';
comment on column :"schema".tidings_prune_failures.reason is 'The error message.';

-- Deletes those of these rows that can be deleted, and records the others. The caller
-- holds locks on the rows and has excluded every other session that prunes.
--
-- Rows are deleted many at a time. If such a statement fails, its rows are deleted one
-- by one, each in a subtransaction, and the number grows again afterwards. It stops
-- once `patience` is over, but tries at least one row, so that a delete that takes
-- seconds (a foreign key whose column has no index) makes a batch slow, not endless.
--
-- Deferred constraints are checked right after each statement: an error at commit would
-- roll back the whole batch.
--
-- A resource shortage of the server (class 53), a shutdown (57) or an I/O error (58)
-- isn't caused by a row and is raised again.
create function :"schema".tidings_prune_rows(
  ids bigint[],
  obstacles bigint,
  patience interval,
  out tried int,
  out removed bigint,
  out users text[],
  out youngest xid8
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
-- If a trigger or a cascade waits for a lock, the statement fails, and its row is
-- retried after a minute.
set lock_timeout = '100ms'
-- The settings of tidings_prune_batch make Postgres overestimate the cost of reading a
-- referencing table without an index, and spend 100 ms compiling each such query.
set jit = off
as $$
#variable_conflict use_variable
declare
  total constant int := cardinality(ids);
  began constant timestamptz := clock_timestamp();
  -- Without anything that could keep a row, all at once.
  size int := case when obstacles is null then greatest(total, 1) else 1 end;
  one_by_one_until int := 0;
  part bigint[];
  part_began timestamptz;
  gone bigint[];
  gone_users text[];
  gone_youngest xid8;
  state text;
  message text;
  at_schema text;
  at_table text;
  at_constraint text;
begin
  tried := 0;
  removed := 0;
  users := '{}';
  while tried < total loop
    part := ids[tried + 1:tried + size];
    part_began := clock_timestamp();
    state := null;
    message := null;
    at_constraint := null;
    begin
      -- Who comes back is told of a gap where rows are gone that would have been
      -- delivered; one that has expired would not have been.
      with gone as (
        delete from :"schema".notifications as n
        where n.id = any (part)
        returning n.id, n.user_id, n.xid, n.expires_at
      )
      select
        array_agg(g.id),
        array_agg(distinct g.user_id),
        (
          array_agg(g.xid order by g.xid desc)
          filter (where g.expires_at is null or g.expires_at > now())
        )[1]
      into gone, gone_users, gone_youngest
      from gone as g;
      if obstacles is not null then
        set constraints all immediate;
      end if;
    exception
      when others then
        get stacked diagnostics
          state = returned_sqlstate,
          message = message_text,
          at_schema = schema_name,
          at_table = table_name,
          at_constraint = constraint_name;
        if left(state, 2) in ('53', '57', '58') then
          raise;
        end if;
        gone := null;
    end;

    if state is not null and cardinality(part) > 1 then
      size := 1;
      one_by_one_until := tried + cardinality(part);
      continue;
    end if;

    if gone is not null then
      removed := removed + cardinality(gone);
      users := users || gone_users;
      youngest := greatest(youngest, gone_youngest);
      delete from :"schema".tidings_prune_failures as f where f.id = any (gone);
    end if;
    if cardinality(coalesce(gone, '{}')) < cardinality(part) then
      insert into :"schema".tidings_prune_failures as f (
        id, tries, retry_at, obstacles, sqlstate, "constraint", reason
      )
      select
        kept.id,
        1,
        clock_timestamp() + case
          when state in ('55P03', '40P01', '40001') then interval '1 minute'
          else interval '1 hour'
        end,
        obstacles,
        coalesce(state, '00000'),
        case
          when at_constraint <> ''
          then concat_ws('.', nullif(at_schema, ''), nullif(at_table, ''), at_constraint)
        end,
        coalesce(left(message, 500), 'a trigger kept the row')
      from unnest(part) as kept (id)
      where kept.id <> all (coalesce(gone, '{}'))
      on conflict (id) do update
      set
        tries = f.tries + 1,
        retry_at = case
          when excluded.retry_at < clock_timestamp() + interval '30 minutes'
          then excluded.retry_at
          else clock_timestamp() + least(interval '1 hour' * 2 ^ least(f.tries, 10), interval '1 day')
        end,
        obstacles = excluded.obstacles,
        sqlstate = excluded.sqlstate,
        "constraint" = excluded."constraint",
        reason = excluded.reason;
    end if;

    tried := tried + cardinality(part);
    exit when clock_timestamp() > began + patience;
    if tried >= one_by_one_until and clock_timestamp() < part_began + interval '50 milliseconds'
    then
      size := least(2 * size, 500);
    end if;
  end loop;
end
$$;

revoke all on function :"schema".tidings_prune_rows(bigint[], bigint, interval) from public;

comment on function :"schema".tidings_prune_rows(bigint[], bigint, interval) is
  'Deletes these notifications and records those that can''t be deleted; tidings_prune_batch calls it (Tidings).';

-- As in V10__prune.sql, with these differences:
--
-- Rows that could not be removed are left out until their next retry; with null as
-- `after`, all of them are retried.
--
-- A batch takes little more than a second, unless a single delete takes longer. If it
-- stops early, it returns the last row that it tried.
--
-- If floors, tickets or disconnections can't be deleted, the batch continues without.
--
-- Deferred constraints of the caller's transaction are checked at once: call it in a
-- transaction of its own.
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
set enable_sort to off
-- For lookups in tidings_prune_failures: the other joins would read all of it.
set enable_hashjoin to off
set enable_mergejoin to off
as $$
declare
  sent_until timestamptz;
  expired_until constant timestamptz := now() - interval '1 hour';
  -- Rows of the future were restored from another cluster, and wait to be
  -- taken over.
  horizon constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
  patience constant interval := '500 milliseconds';
  obstacles_now bigint;
  any_old boolean;
  sent_ids bigint[] := '{}';
  expired_ids bigint[];
  sent record;
  expired record;
  users text[] := '{}';
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

  -- Everything that takes part in a delete: foreign keys, which are triggers too,
  -- other triggers, and rules. The versions of their catalog rows change whenever
  -- they are changed. Null if there is nothing.
  select hashtextextended(string_agg(o.version, ' ' order by o.version), 0)
  into obstacles_now
  from (
    select concat_ws('/', 'trigger', t.oid, t.xmin, p.xmin) as version
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where
      t.tgrelid = to_regclass(format('%I.notifications', :'schema'))
      -- On DELETE.
      and t.tgtype & 8 <> 0
      and t.tgenabled in ('O', 'A')
    union all
    select concat_ws('/', 'rule', r.oid, r.xmin)
    from pg_rewrite as r
    where
      r.ev_class = to_regclass(format('%I.notifications', :'schema'))
      and r.ev_type = '4'
  ) as o;

  if tidings_prune_batch.after is null then
    delete from :"schema".tidings_prune_failures;
  else
    -- Overdue by a day: the row is gone, or no longer one that is to go.
    delete from :"schema".tidings_prune_failures as f
    where
      f.id = any (
        array(
          select g.id
          from :"schema".tidings_prune_failures as g
          where g.retry_at < now() - interval '1 day'
          order by g.retry_at
          limit batch
        )
      );
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

  -- The sum keeps the condition off the index on retry_at, by which each row's look-up
  -- would read all of the failures.
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
        and not exists (
          select
          from :"schema".tidings_prune_failures as f
          where
            f.id = n.id
            and f.retry_at + interval '0' > now()
            and f.obstacles is not distinct from obstacles_now
        )
      order by n.id
      for update skip locked
    );
  end if;
  select * into sent from :"schema".tidings_prune_rows(sent_ids, obstacles_now, patience);

  expired_ids := array(
    select n.id
    from :"schema".notifications as n
    where
      n.expires_at < expired_until
      and n.created_at < expired_until
      and n.xid < horizon
      and not exists (
        select
        from :"schema".tidings_prune_failures as f
        where
          f.id = n.id
          and f.retry_at + interval '0' > now()
          and f.obstacles is not distinct from obstacles_now
      )
    order by n.expires_at
    limit batch
    for update skip locked
  );
  select * into expired from :"schema".tidings_prune_rows(expired_ids, obstacles_now, patience);

  removed := sent.removed + expired.removed;
  users := sent.users || expired.users;
  youngest := greatest(sent.youngest, expired.youngest);

  update :"schema".tidings_pruned as p
  set xid = youngest
  where p.only_row and p.xid < youngest;

  -- How far users are drained who have no rows any more. Asked for from the
  -- youngest row, which is there as long as there is any.
  begin
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
    set constraints all immediate;
  exception
    -- What refers to it is for tidings check to find; a floor that stays does no
    -- harm. So it is with tickets and disconnections.
    when others then
      if left(sqlstate, 2) in ('53', '57', '58') then
        raise;
      end if;
  end;

  -- Bridges remove these too, as long as there are any.
  begin
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
    set constraints all immediate;
  exception
    when others then
      if left(sqlstate, 2) in ('53', '57', '58') then
        raise;
      end if;
  end;
  begin
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
    set constraints all immediate;
  exception
    when others then
      if left(sqlstate, 2) in ('53', '57', '58') then
        raise;
      end if;
  end;

  if sent.tried < cardinality(sent_ids) then
    looked_to := sent_ids[sent.tried];
  elsif not any_old then
    looked_to := case
      when cardinality(expired_ids) = batch or expired.tried < cardinality(expired_ids)
      then coalesce(tidings_prune_batch.after, 0)
    end;
  end if;
  return next;
exception
  when lock_not_available then
    return;
end
$$;

-- Roles that were granted the removal of rows by name can read which rows remain.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant select on %I.tidings_prune_failures to %s', :'schema', a.grantee::regrole
      )
    from pg_proc as p
    cross join aclexplode(p.proacl) as a
    where
      p.oid = to_regprocedure(
        format('%I.tidings_prune_batch(interval, bigint, integer)', :'schema')
      )
      and a.grantee not in (0, p.proowner)
      and a.privilege_type = 'EXECUTE'
  loop
    execute statement;
  end loop;
end
$$;
