-- Removes what has had its time: rows that were sent long ago, and rows that
-- have expired. In small batches, each a transaction of its own, which wait for
-- nobody and for which nobody waits.

-- Which rows have expired. Most have no end and are not in it. A mark changes
-- nothing of it, so marks stay heap-only.
--
-- While it is made, which reads the table once, INSERTs wait.
create index notifications_expires_at on :"schema".notifications (expires_at)
where expires_at is not null;

-- Autovacuum, for a table that is written, marked and pruned without end: of
-- each row it finds a dead version when it was marked, unless a page's own
-- clean-up was faster, and a dead row when it was pruned.
--
-- By default it comes when a fifth of the table is dead. With 30 days of 10
-- million rows that would be once in six days, and the table a fifth larger than
-- it need be. At a hundredth it comes three times a day; a small table is left
-- in peace until 10,000 are dead. Each time costs one reading of the indexes, and
-- of the table only those pages that were written to since. Inserts alone,
-- without any dead row, call for it at a fiftieth, so that new pages are known
-- to be all visible, and frozen, piece by piece and not all at once.
--
-- The cost limit stays as it is: at 200 it writes 40 MB/s, some hundred times what
-- 10 million rows a day make dirty. More would only be felt by others.
--
-- It doesn't try to give the end of the file back to the system. For that it
-- takes the table's strongest lock, and writers would wait; and the space is
-- needed again by the next rows. After a large clean-up, "vacuum (truncate)
-- notifications" does it once.
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

-- One batch: looks at the rows that come after `after`, as many as `batch`, and
-- removes those of them that were sent longer ago than `sent_before`; and beside
-- them as many rows, wherever they are, that expired an hour ago or earlier. An
-- hour, so that one can see why a row didn't come, and put its end off.
--
-- Returns how many it removed, and the last row that it looked at, with which
-- the next batch begins. Null: there is nothing more. No row at all: somebody
-- else is removing rows just now, or has locked what this needs.
--
-- Whoever calls it can't remove what is still to be delivered, nor anything
-- that is younger than an hour: `created_at` is set by its default alone, so
-- marks that a bridge forges with an early `sent_at` are no help.
--
-- Nobody waits: rows that others have locked are left to the next time, and a
-- table that somebody alters is waited for no longer than a second.
--
-- It goes by id from the oldest row, and that of the plan must not depend on
-- what is known of the table. The rows that it passes over were not sent, or
-- not long enough ago.
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

-- All batches, for pg_cron and the like: call tidings_prune('30 days'). After
-- each it rests for four times as long as that took.
--
-- It ends each batch's transaction, so Postgres lets it neither run with its
-- owner's rights nor keep a search path: it may do what its caller may. All names
-- in it are qualified, operators too, so that a caller's path decides nothing.
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
