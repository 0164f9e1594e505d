-- Records that a user has nothing left to deliver below a transaction.
--
-- $1 user, $2 the transaction: at most the oldest one that was running in the snapshot
-- that found this, so that no row below it can still become visible. $3 the cluster's
-- system identifier, $4 and $5 the server's incarnation in which it was found
-- (incarnation.sql). After a crash or a failover, marks may be lost and transaction ids
-- reused: then nothing is recorded.
--
-- The commit doesn't wait for the disk, because it doesn't matter whether the record
-- survives a crash. If it does, everything it depends on does too, because that
-- precedes it in the log.
insert into :"schema".tidings_drained as d (user_id, xid, system_identifier)
select $1, $2, $3
from (
  select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
) as hurried
where
  exists (select from (:incarnation) as here where here.timeline = $4 and here.since = $5)
on conflict (user_id) do update
set xid = excluded.xid, system_identifier = excluded.system_identifier
where d.xid < excluded.xid or d.system_identifier <> excluded.system_identifier
