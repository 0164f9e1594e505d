-- Marks rows as sent; returns those that another session has locked, or whose update
-- a trigger has suppressed, to be tried again, and in a row without an id how many
-- were marked.
--
-- $1 ids, $4 when each was written to a connection, $2 and $3 the incarnation of the
-- server that they belong to (incarnation.sql). After a failover or a crash another row may bear the same id:
-- then nothing is marked, and `marked` is null.
--
-- A lost mark is only a repeat, so the commit need not wait for the disk:
-- set_config with "is local" holds until the end of this very statement's
-- transaction and leaves nothing behind in the session. Locked in the order of
-- ids and skipping what is locked, bridges neither wait for each other nor
-- deadlock. A trigger of the application that waits for a lock fails after the
-- lock_timeout: its row is tried again alone, and the others don't wait.
with
  ours as (
    select
    from :"schema".tidings_incarnation
    where
      single
      and since = $3
      and set_config('synchronous_commit', 'off', true) = 'off'
      and set_config('lock_timeout', '50ms', true) = '50ms'
      and ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int = $2
  ),
  locked as (
    select id
    from :"schema".notifications
    where id = any($1::bigint[]) and sent_at is null and exists (select from ours)
    order by id
    for no key update skip locked
  ),
  -- Apart from the table, which would else be read as a whole for this join.
  timed as materialized (
    select locked.id, written.at
    from locked
    join unnest($1::bigint[], $4::timestamptz[]) as written (id, at) on written.id = locked.id
  ),
  marked as (
    update :"schema".notifications as n
    set sent_at = timed.at
    from timed
    where n.id = timed.id
    returning n.id
  )
select n.id, null::bigint as marked
from :"schema".notifications as n
where
  n.id = any($1::bigint[])
  and n.sent_at is null
  and n.id not in (select id from marked)
  and exists (select from ours)
  -- Mostly all are marked: then nothing is read for a third time.
  and (select count(*) from marked) < cardinality($1)
union all
select null, case when exists (select from ours) then (select count(*) from marked) end
