-- Whether this session belongs to the one bridge that removes old rows automatically.
-- It remains so until the session ends.
--
-- $1 the table's qualified name. 1953064048 is 'tidp' in ASCII (fall_asleep.sql). Any
-- role can hold this lock: lock_strangers.sql then reports it.
select pg_catalog.pg_try_advisory_lock(1953064048, pg_catalog.to_regclass($1)::oid::int) as taken
