-- Transactions that may have held locks on rows of notifications for long, as far as
-- this role may see them: a locked row can't be marked as sent.
--
-- $1 schema, $2 seconds that a transaction may be open. Row locks are recorded only in
-- the rows themselves, so this checks the lock on the table. `locks_rows`: the lock is
-- that of SELECT FOR UPDATE and similar; the other is that of UPDATE and DELETE, and
-- also of INSERT, which is harmless. `seconds` is null if this role may not see it:
-- then only those with `locks_rows` are returned.
with
  holders as (
    select l.pid, l.virtualtransaction, bool_or(l.mode = 'RowShareLock') as locks_rows
    from pg_locks as l
    join pg_class as c on c.oid = l.relation
    where
      l.database = (select oid from pg_database where datname = current_database())
      and l.granted
      and l.pid is distinct from pg_backend_pid()
      and l.mode in ('RowShareLock', 'RowExclusiveLock')
      and c.relnamespace = to_regnamespace(quote_ident($1))
      and c.relname = 'notifications'
    group by l.pid, l.virtualtransaction
  )
select what, format('%I.notifications', $1) as "table", seconds, locks_rows, fix
from (
  select
    format(
      'backend %s (%s)',
      h.pid,
      concat_ws(
        ', ',
        a.usename,
        nullif(a.application_name, ''),
        a.state,
        'its last query began at ' || date_trunc('second', a.query_start)
      )
    ) as what,
    extract(epoch from clock_timestamp() - a.xact_start)::float8 as seconds,
    h.locks_rows,
    format('select pg_terminate_backend(%s);', h.pid) as fix
  from holders as h
  join pg_stat_activity as a on a.pid = h.pid
  where
    -- Marks of bridges take only milliseconds.
    a.application_name is distinct from 'tidings'
    and coalesce(a.backend_type, 'client backend') = 'client backend'
  union all
  select
    format('the prepared transaction %L (%s)', p.gid, p.owner),
    extract(epoch from clock_timestamp() - p.prepared)::float8,
    h.locks_rows,
    format(
      'commit prepared %1$L; or rollback prepared %1$L; as its coordinator decided', p.gid
    )
  from holders as h
  -- A prepared transaction has no session but holds a lock on its own id.
  join pg_locks as own
    on
      own.pid is null
      and own.locktype = 'transactionid'
      and own.virtualtransaction = h.virtualtransaction
  join pg_prepared_xacts as p on p.transaction = own.transactionid
  where h.pid is null
) as found
where case when seconds is null then locks_rows else seconds >= $2 end
order by locks_rows desc, seconds desc nulls last
limit 10
