-- Falls asleep, if it can: from then on writers ring.
--
-- $1 the table's OID. The lock is that of tidings_ring_doorbell().
--
-- It tries and never waits: a lock that is waited for would make writers ring
-- too. Where another bridge holds it, a writer's own try fails, and that is
-- just as good. Else only writers hold it, and some of them may have skipped the
-- bell: stay awake.
select
  case
    when pg_try_advisory_lock(1953064041, $1::oid::int) then 'seated'
    when pg_try_advisory_xact_lock_shared(1953064041, $1::oid::int) then 'awake'
    else 'guest'
  end as watch
