-- Whether this session is the one bridge that removes old rows by itself. It stays so
-- until the session ends.
--
-- $1 the table's qualified name. 1953064048 is 'tidp' in ASCII (fall_asleep.sql). Any
-- role can hold this lock: then lock_strangers.sql says who does.
select pg_catalog.pg_try_advisory_lock(1953064048, pg_catalog.to_regclass($1)::oid::int) as taken
