-- Marks rows as sent. Returns the rows to retry: those that another session has locked,
-- or whose update a trigger has suppressed. A row without an id carries the number of
-- rows marked.
--
-- $1 ids, $4 when each was written to a connection, $2 and $3 the server's incarnation
-- that they belong to (incarnation.sql). After a failover or a crash another row may
-- have the same id: then nothing is marked, and `marked` is null.
--
-- A lost mark only causes a duplicate, so the commit doesn't wait for the disk:
-- set_config with "is local" applies until the end of this statement's transaction and
-- leaves nothing behind in the session. Rows are locked in the order of ids and locked
-- ones are skipped, so bridges neither wait for each other nor deadlock. If a trigger
-- of the application waits for a lock, the statement fails after lock_timeout: the row
-- is retried alone, and the others don't wait.
with
  ours as (
    select
    from (:incarnation) as here
    where
      here.timeline = $2
      and here.since = $3
      and set_config('synchronous_commit', 'off', true) = 'off'
      and set_config('lock_timeout', '50ms', true) = '50ms'
  ),
  locked as (
    select id
    from :"schema".notifications
    where id = any($1::bigint[]) and sent_at is null and exists (select from ours)
    order by id
    for no key update skip locked
  ),
  -- Separate from the table, which would otherwise be read completely for this join.
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
  -- Usually all rows are marked: then nothing is read a third time.
  and (select count(*) from marked) < cardinality($1)
union all
select null, case when exists (select from ours) then (select count(*) from marked) end
