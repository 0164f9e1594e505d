-- Has writers ring, and tells since which time (null: somebody else is changing
-- that just now) and whether any is still at work that may not have.
--
-- $1 the table's OID.
--
-- Two changes at once could give the same number twice, hence the lock. It is
-- tried and never waited for: any role can hold it, and that costs speed alone.
-- 1953064041 is 'tidi' in ASCII: another kind of key than those of one bigint,
-- and than (table's OID, row's id), which applications use.
--
-- Every INSERT holds RowExclusiveLock until its rows are visible. The order
-- matters: that is asked for each row of `bell`, so after it.
select
  bell.rings_since,
  exists (
    select
    from pg_locks
    where
      bell.rings_since is not null
      and locktype = 'relation'
      and database = (select oid from pg_database where datname = current_database())
      and relation = $1
      and mode = 'RowExclusiveLock'
      and granted
  ) as writing
from (
  select
    case
      when lock.taken then coalesce(
        pg_sequence_last_value(change.sequence),
        setval(change.sequence, change.last_value + 1)
      )
    end as rings_since
  from (
    select pg_try_advisory_xact_lock(1953064041, $1::oid::int) as taken
    offset 0
  ) as lock
  left join lateral (
    select tableoid::regclass as sequence, last_value
    from :"schema".tidings_bell
    where lock.taken
  ) as change on true
  offset 0
) as bell
