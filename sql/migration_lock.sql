-- Tries to take the lock around migrations, and names who has it.
--
-- $1 what is locked. A 64-bit advisory lock shows in pg_locks as its two
-- halves, with objsubid 1.
select
  pg_try_advisory_lock(hashtextextended($1, 0)) as taken,
  (
    select pid
    from pg_locks
    where
      locktype = 'advisory'
      and database = (select oid from pg_database where datname = current_database())
      and objsubid = 1
      and (classid::bigint << 32 | objid::bigint) = hashtextextended($1, 0)
      and granted
    limit 1
  ) as holder
