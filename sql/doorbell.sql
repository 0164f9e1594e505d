-- Whether the doorbell works.
--
-- $1 the table's qualified name, $2 the trigger's name. `trigger` is null if the
-- trigger doesn't exist, otherwise it says when it fires (pg_trigger.tgenabled).
-- `restored` is true if there are rows from another cluster, which no reader sees
-- (restamp_restored_rows.sql). The subscription is read as in subscription.sql.
select
  t.oid as table_oid,
  (
    select tgenabled
    from pg_trigger
    where tgrelid = t.oid and tgname = $2 and not tgisinternal
  ) as trigger,
  (
    select subname
    from pg_subscription_rel
    join pg_stat_subscription as s on s.subid = srsubid
    where srrelid = t.oid
    limit 1
  )::text as subscription,
  exists (
    select
    from :"schema".notifications
    where xid >= pg_snapshot_xmax(pg_current_snapshot())
  ) as restored
from (select to_regclass($1)::oid as oid) as t
