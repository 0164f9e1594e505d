-- Makes writers stop ringing, and rings once, so that sleeping bridges poll. Does
-- nothing if writers already don't ring.
--
-- $1 the table's OID. The lock is that of fall_asleep.sql.
--
-- It is one statement, so that a bridge that freezes has sent all of it or nothing. The
-- sequence changes at once and the doorbell arrives after the commit: a bridge that
-- receives it then finds the change.
select pg_notify(concat('tidings_', $1::oid), '')
from (
  select pg_try_advisory_xact_lock(1953064041, $1::oid::int) as taken
  offset 0
) as lock
cross join lateral (
  select tableoid::regclass as sequence, last_value
  from :"schema".tidings_bell
  where lock.taken and pg_sequence_last_value(tableoid) is not null
) as change
cross join lateral (
  select setval(change.sequence, change.last_value + 1, false) as unrung_since
  offset 0
) as done
where done.unrung_since is not null
