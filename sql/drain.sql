-- Notes that nothing is left to deliver of a user before a transaction.
--
-- $1 user, $2 the transaction: at most the oldest that was running in the
-- snapshot that saw it, so that no row of before it can still become visible;
-- $3 the cluster's system identifier, $4 and $5 the incarnation of the server
-- that it was seen in (incarnation.sql). After a crash or a failover marks may be
-- lost and transaction ids handed out again: then nothing is noted.
--
-- Whether it survives a crash doesn't matter, so the commit need not wait for
-- the disk. If it does, so does all that it rests on, which stands before it in
-- the log.
insert into :"schema".tidings_drained as d (user_id, xid, system_identifier)
select $1, $2, $3
from (
  select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
) as hurried
where
  exists (
    select
    from :"schema".tidings_incarnation
    where
      single
      and since = $5
      and ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int = $4
  )
on conflict (user_id) do update
set xid = excluded.xid, system_identifier = excluded.system_identifier
where d.xid < excluded.xid or d.system_identifier <> excluded.system_identifier
