-- Removes rows that are past their retention: rows that were sent long ago, and rows
-- that have expired. It works in small batches, each in a transaction of its own, which
-- neither wait for other sessions nor block them.

-- Expired rows. Most rows have no expiry and aren't in it. A mark doesn't change it, so
-- marks stay heap-only.
--
-- Creating it reads the table once, and INSERTs wait meanwhile.
create index notifications_expires_at on :"schema".notifications (expires_at)
where expires_at is not null;

-- Autovacuum, for a table that is written, marked and pruned continuously: each row
-- leaves a dead version when it is marked, unless pruning within its page was faster,
-- and a dead row when it is removed.
--
-- By default it runs when a fifth of the table is dead. With 30 days of 10 million
-- rows, that would be once in six days, and the table would be a fifth larger than
-- necessary. At a hundredth it runs three times a day; a small table is left alone
-- until 10,000 rows are dead. Each run reads the indexes once, and of the table only
-- the pages that were written to since. Inserts alone, without any dead row, trigger it
-- at a fiftieth, so that new pages are marked all-visible and frozen gradually instead
-- of all at once.
--
-- The cost limit is unchanged: at 200 it writes 40 MB/s, some hundred times what 10
-- million rows a day make dirty. A higher limit would only slow down other sessions.
--
-- It doesn't try to return the end of the file to the system. For that it takes the
-- table's strongest lock, and writers would wait; besides, the next rows need the space
-- again. After a large clean-up, run "vacuum (truncate) notifications" once.
alter table :"schema".notifications set (
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 10000,
  autovacuum_vacuum_insert_scale_factor = 0.02,
  autovacuum_vacuum_insert_threshold = 100000,
  vacuum_truncate = off,
  -- Texts above two kilobytes, which are dead when their row is.
  toast.autovacuum_vacuum_scale_factor = 0.01,
  toast.autovacuum_vacuum_threshold = 10000,
  toast.vacuum_truncate = off
);

-- One batch: examines the next `batch` rows after `after`, and removes those that were
-- sent longer ago than `sent_before`; and up to as many rows, wherever they are, that
-- expired at least an hour ago. The hour leaves time to see why a row wasn't delivered,
-- and to extend its expiry.
--
-- Returns how many rows it removed and the last row it examined, from which the next
-- batch continues. Null: there is nothing more. No row at all: another session is
-- removing rows right now, or has locked what this needs.
--
-- A caller can't remove rows that are still to be delivered, nor rows younger than an
-- hour: `created_at` is set only by its default, so forging marks with an early
-- `sent_at` doesn't help a bridge.
--
-- It doesn't block other sessions: it skips rows that others have locked until the next
-- time, and waits at most a second for a table that is being altered.
--
-- It walks by id from the oldest row, and the plan for that must not depend on the
-- statistics of the table. The rows that it skips were not sent, or not long enough
-- ago.
create function :"schema".tidings_prune_batch(
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

revoke all on function :"schema".tidings_prune_batch(interval, bigint, int) from public;

comment on function :"schema".tidings_prune_batch(interval, bigint, int) is
  'Removes one batch of rows that were sent longer ago than that, or have expired (Tidings).';

-- All batches, for pg_cron and similar: call tidings_prune('30 days'). After each batch
-- it pauses for four times as long as the batch took.
--
-- It ends each batch's transaction, so Postgres allows it neither to run with its
-- owner's privileges nor to set a search path: it may do what its caller may. All names
-- in it are qualified, including operators, so that the caller's path has no effect.
create procedure :"schema".tidings_prune(sent_before interval, batch int default 500)
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

revoke all on procedure :"schema".tidings_prune(interval, int) from public;

comment on procedure :"schema".tidings_prune(interval, int) is
  'Removes rows that were sent longer ago than that, or have expired, batch by batch (Tidings).';
