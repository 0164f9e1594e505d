-- A row that is inserted with another transaction's id (restored data, a row copied
-- back from a backup) is delivered like any other, however low that id is.
--
-- Such a row may be below the floor of its user (V9__drained.sql) and below the
-- positions of open connections: both count everything there as seen. So the row is
-- assigned to the transaction that inserts it, which makes it a new row. This applies
-- only to unsent rows: the others are history.

-- With tidings.marking, this update isn't taken for a change of an earlier row. The
-- setting is restored afterwards, since later updates of the transaction may be such
-- changes.
create function :"schema".tidings_restamp() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  marking constant text := coalesce(current_setting('tidings.marking', true), '');
begin
  perform set_config('tidings.marking', 'on', true);
  update :"schema".notifications as n
  set xid = pg_current_xact_id()
  where n.id = new.id;
  perform set_config('tidings.marking', marking, true);
  return null;
end
$$;

revoke all on function :"schema".tidings_restamp() from public;

comment on function :"schema".tidings_restamp() is
  'Gives a row that is inserted with another transaction''s id to the one that inserts it (Tidings).';

-- As in V12__seen_from_sql.sql; but floors count only while both triggers that guard
-- them fire in every session, as in sql/backlog_page.sql.
create or replace function :"schema".tidings_pending_users()
returns table (user_id text, pending bigint, oldest timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_indexscan = on
set enable_indexonlyscan = on
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
      and d.xid <= pg_snapshot_xmax(pg_current_snapshot())
      and (
        select count(*) = 2
        from pg_trigger as t
        where
          t.tgrelid = :'"schema".notifications'::regclass
          and t.tgname in ('tidings_reopen', 'tidings_restamp')
          and t.tgenabled = 'A'
      )
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

-- For each row, but for rows that have their own transaction's id only its condition is
-- evaluated: some 20 ns per row, and COPY can still insert many at a time. A trigger
-- before the insert would prevent that.
create trigger tidings_restamp
after insert on :"schema".notifications
for each row
when (
  new.xid operator(pg_catalog.<>) pg_catalog.pg_current_xact_id() and new.sent_at is null
)
execute function :"schema".tidings_restamp();

-- Both also fire in sessions with session_replication_role = replica. Disabling them
-- and enabling them again (pg_restore --disable-triggers) leaves them without ALWAYS,
-- and it is unknown which rows were written without them: so floors count only while
-- both are as they are here.
alter table :"schema".notifications enable always trigger tidings_restamp;
alter table :"schema".notifications enable always trigger tidings_reopen;

-- Rows that were restored earlier become visible again. Since the lock on the table was
-- taken, no row can be inserted without the trigger.
insert into :"schema".tidings_reopened (xid)
select pg_current_xact_id()
where exists (select from :"schema".tidings_drained)
on conflict do nothing;
