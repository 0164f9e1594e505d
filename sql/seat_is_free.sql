-- Whether writers leave the bell unrung, tested as they do.
--
-- $1 the table's OID. The lock is that of tidings_ring_doorbell().
select pg_try_advisory_xact_lock_shared(1953064041, $1::oid::int) as free
