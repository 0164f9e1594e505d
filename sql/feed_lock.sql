-- Whether this session belongs to the one bridge that reads the table for the others. It
-- remains so until the session ends, or the lock is released (feed_unlock.sql).
--
-- $1 the table. 1953064038 is 'tidf' in ASCII. The lock only saves work: any role can hold
-- it, and then each bridge reads for itself.
select pg_catalog.pg_try_advisory_lock(1953064038, $1::oid::int) as taken
