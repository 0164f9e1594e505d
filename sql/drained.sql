-- The transaction below which a user has nothing left to deliver, 0 if none is known.
-- Included by the variable `drained`.
--
-- $1 user, $7 the cluster's system identifier.
select coalesce(
  (
    select d.xid
    from :"schema".tidings_drained as d
    where
      d.user_id = $1
      and d.system_identifier = $7
      and d.xid <= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
      and (:guarded)
      and not exists (
        select
        from :"schema".tidings_reopened as r
        -- Transactions of the future were restored from another cluster.
        where r.xid >= d.xid and r.xid < pg_snapshot_xmax(pg_current_snapshot())
      )
  ),
  '0'
) as xid
