-- Records up to where a user whose streams have been open for a long time has nothing
-- left to deliver: a connected user reads no first page that would record it
-- (drain.sql).
--
-- $1 user, $2 the maximum number of rows examined; the next call continues from there.
--
-- The rules of drain.sql apply: up to the first row that must be delivered, and at most
-- up to the oldest running transaction. Reading and recording are one statement, so no
-- crash can happen in between.
with
  here as materialized (
    select
      control.system_identifier,
      pg_snapshot_xmin(pg_current_snapshot()) as running,
      coalesce(
        (
          select d.xid
          from :"schema".tidings_drained as d
          where
            d.user_id = $1
            and d.system_identifier = control.system_identifier
            and d.xid <= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
            and (:guarded)
            and not exists (
              select
              from :"schema".tidings_reopened as r
              where r.xid >= d.xid and r.xid < pg_snapshot_xmax(pg_current_snapshot())
            )
        ),
        '0'
      ) as xid
    from pg_control_system() as control
  ),
  passed as materialized (
    select
      n.xid,
      n.sent_at is null and (n.expires_at is null or n.expires_at > now()) as waits
    from :"schema".notifications as n
    where
      n.user_id = $1
      and n.xid >= (select xid from here)
      and n.xid < (select running from here)
    order by n.user_id, n.xid, n.id
    limit $2
  ),
  found as (
    select
      case
        when exists (select from passed where waits)
        then (select xid from passed where waits order by xid limit 1)
        when (select count(*) from passed) < $2
        then (select running from here)
        else (select xid from passed order by xid desc limit 1)
      end as xid
  )
insert into :"schema".tidings_drained as d (user_id, xid, system_identifier)
select $1, found.xid, here.system_identifier
from (
  select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
) as hurried
cross join here
cross join found
where found.xid > here.xid
on conflict (user_id) do update
set xid = excluded.xid, system_identifier = excluded.system_identifier
where d.xid < excluded.xid or d.system_identifier <> excluded.system_identifier
