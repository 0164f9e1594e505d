-- Whether this session is the one bridge that removes old rows by itself. It
-- stays so until the session ends. Any role can hold this lock; that costs the
-- cleaning up, for which there is `tidings prune`.
--
-- $1 the table's qualified name. 1953064048 is 'tidp' in ASCII (fall_asleep.sql).
select pg_try_advisory_lock(1953064048, to_regclass($1)::oid::int) as taken
