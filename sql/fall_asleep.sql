-- Makes writers ring. Returns since which value of the sequence they do (null: another
-- session is changing the sequence right now), and whether a writer is active that may
-- not ring.
--
-- $1 the table's OID.
--
-- Two concurrent changes could assign the same number twice, hence the lock. It is
-- tried, never waited for: any role can hold it, and that costs only speed. 1953064041
-- is 'tidi' in ASCII. The key has two parts, which keeps it apart from keys of one
-- bigint; applications that use two parts use (table's OID, row's id).
--
-- Every INSERT holds RowExclusiveLock until its rows are visible. The order matters:
-- the locks are checked for each row of `bell`, so after the sequence is set.
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
