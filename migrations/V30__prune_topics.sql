-- Rows for topics are removed by their age, whether they were sent or not: sent_at says
-- that one of many users received such a row, and the others are not tracked. What
-- is removed is announced as before: a client that returns from a position that isn't past it
-- receives `tidings.gap`.

-- As in V16__prune_failures.sql, with these differences:
--
-- Rows for topics are removed `topics_before` after they were created, by default
-- `sent_before`, and not when they were sent.
--
-- It also removes old membership changes, and cursors that are no longer used.
create function :"schema".tidings_prune_batch(
  sent_before interval,
  after bigint default 0,
  batch int default 500,
  topics_before interval default null
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
  topics_for constant interval := coalesce(topics_before, sent_before);
  sent_until timestamptz;
  topics_until timestamptz;
  expired_until constant timestamptz := now() - interval '1 hour';
  -- Rows of the future were restored from another cluster, and wait to be
  -- taken over.
  horizon constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
  patience constant interval := '500 milliseconds';
  obstacles_now bigint;
  any_old boolean;
  sent_ids bigint[] := '{}';
  topic_ids bigint[];
  expired_ids bigint[];
  sent record;
  topical record;
  expired record;
  users text[] := '{}';
  youngest xid8;
begin
  if sent_before is null or sent_before < interval '1 hour' then
    raise exception 'rows stay for an hour at least after they were sent'
      using errcode = 'invalid_parameter_value',
        hint = 'Pass an interval such as ''30 days'' as sent_before.';
  end if;
  if topics_for < interval '1 hour' then
    raise exception 'rows for topics stay for an hour at least'
      using errcode = 'invalid_parameter_value',
        hint = 'Pass an interval such as ''30 days'' as topics_before.';
  end if;
  if batch is null or batch not between 1 and 10000 then
    raise exception 'a batch has 1 to 10,000 rows'
      using errcode = 'invalid_parameter_value';
  end if;
  sent_until := now() - sent_before;
  topics_until := now() - topics_for;

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
        and n.topic is null
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

  -- The oldest rows for topics, which have no user, from the front of the index
  -- (user_id, xid, id): by transaction, so one that was restored goes when those do that
  -- were written at that time.
  topic_ids := array(
    select n.id
    from :"schema".notifications as n
    where
      n.id = any (
        array(
          select w.id
          from (
            select o.id, o.created_at
            from :"schema".notifications as o
            where
              o.user_id is null
              and o.xid < horizon
              and not exists (
                select
                from :"schema".tidings_prune_failures as f
                where
                  f.id = o.id
                  and f.retry_at + interval '0' > now()
                  and f.obstacles is not distinct from obstacles_now
              )
            order by o.user_id, o.xid, o.id
            limit batch
          ) as w
          where w.created_at < topics_until
        )
      )
    for update skip locked
  );
  select * into topical
  from :"schema".tidings_prune_rows(topic_ids, obstacles_now, patience);

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

  removed := sent.removed + topical.removed + expired.removed;
  users := sent.users || expired.users;
  youngest := greatest(sent.youngest, topical.youngest, expired.youngest);

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

  begin
    perform :"schema".tidings_prune_membership_changes(batch);
    set constraints all immediate;
  exception
    when others then
      if left(sqlstate, 2) in ('53', '57', '58') then
        raise;
      end if;
  end;
  -- Cursors of users who have not been here for a year, nor for as long as rows for
  -- topics stay: without one, a user is like a new one, who receives nothing for everyone
  -- that was sent before. No index has the time, because it would have to change with
  -- each cursor; so each batch examines some 64 pages of the table, at random.
  begin
    delete from :"schema".tidings_cursors as c
    where
      c.user_id = any (
        array(
          select s.user_id
          from :"schema".tidings_cursors as s tablesample system (
            least(
              100,
              64 * 100 * current_setting('block_size')::real
              / greatest(pg_relation_size(:'"schema".tidings_cursors'::regclass), 1)
            )
          )
          where s.written_on < (now() - greatest(topics_for, interval '1 year'))::date
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
      when
        cardinality(topic_ids) > 0
        or cardinality(expired_ids) = batch
        or expired.tried < cardinality(expired_ids)
      then coalesce(tidings_prune_batch.after, 0)
    end;
  end if;
  return next;
exception
  when lock_not_available then
    return;
end
$$;

-- All batches, as in V10__prune.sql.
create procedure :"schema".tidings_prune(
  sent_before interval,
  batch int default 500,
  topics_before interval default null
)
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
    from :"schema".tidings_prune_batch(sent_before, after, batch, topics_before) as p;
    -- Another session is pruning.
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

revoke all on function :"schema".tidings_prune_batch(interval, bigint, int, interval) from public;
revoke all on procedure :"schema".tidings_prune(interval, int, interval) from public;

-- The former functions are dropped: beside the new ones, whose last argument has a
-- default, a call with fewer arguments would be ambiguous. Earlier bridges pass two,
-- and remove rows for topics when rows that were sent as long ago are removed.
--
-- As in V22__send_expiry_and_ref.sql, the owner, comment and privileges are those of the
-- functions that they replace.
do $migration$
declare
  replaced record;
  granted record;
  dependents text;
begin
  for replaced in
    select
      old.oid::regprocedure as former,
      new.oid::regprocedure as latter,
      old.proowner::regrole as owner,
      of.comment,
      coalesce(old.proacl, acldefault('f', old.proowner)) as privileges,
      -- What default privileges have added.
      coalesce(new.proacl, acldefault('f', new.proowner)) as additions
    from (
      values
        (
          'tidings_prune_batch(interval, bigint, int)',
          'tidings_prune_batch(interval, bigint, int, interval)',
          'Removes one batch of rows that were sent or, for topics, created longer ago than that, '
          'or have expired (Tidings).'
        ),
        (
          'tidings_prune(interval, int)',
          'tidings_prune(interval, int, interval)',
          'Removes rows that were sent or, for topics, created longer ago than that, or have '
          'expired, batch by batch (Tidings).'
        )
    ) as of (former, latter, comment)
    join pg_proc as old on old.oid = to_regprocedure(format('%I.%s', :'schema', of.former))
    join pg_proc as new on new.oid = to_regprocedure(format('%I.%s', :'schema', of.latter))
  loop
    execute format('comment on routine %s is %L', replaced.latter, replaced.comment);
    for granted in
      select distinct case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as grantee
      from aclexplode(replaced.additions) as a
    loop
      execute format('revoke all on routine %s from %s', replaced.latter, granted.grantee);
    end loop;
    for granted in
      select
        case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as grantee,
        case when a.is_grantable then ' with grant option' else '' end as options
      from aclexplode(replaced.privileges) as a
      order by a.is_grantable
    loop
      execute format(
        'grant execute on routine %s to %s%s', replaced.latter, granted.grantee, granted.options
      );
    end loop;
    if replaced.owner <> to_regrole(quote_ident(current_user)) then
      execute format('alter routine %s owner to %s', replaced.latter, replaced.owner);
    end if;
    begin
      execute format('drop routine %s', replaced.former);
    exception
      when dependent_objects_still_exist then
        get stacked diagnostics dependents = pg_exception_detail;
        raise exception using
          errcode = 'dependent_objects_still_exist',
          message = format(
            'the function %s gets a further argument and has to be replaced, but objects that do not '
            'belong to Tidings depend on it: %s',
            replaced.former,
            replace(dependents, chr(10), '; ')
          ),
          hint = 'Drop them, run `tidings migrate`, and create them again as they were.';
    end;
  end loop;
end
$migration$;
