-- Lets another bridge read the table for the others (feed_lock.sql). $1 the table.
select pg_catalog.pg_advisory_unlock(1953064038, $1::oid::int)
