-- Unauthorized holders of our advisory locks. Any role that can connect can take these
-- locks: that costs speed, never a row.
--
-- $1 schema. `lock` is bell, feed, prune or migration (fall_asleep.sql, feed_lock.sql,
-- prune_turn.sql, migration_lock.sql). Authorized are, respectively: roles that may change
-- whether writers ring (for two of them), roles that may remove old rows, and roles that
-- may act as the owner.
-- Values that this role may not see are null.
with
  place as (
    select
      n.oid,
      n.nspname,
      to_regclass(format('%I.notifications', n.nspname)) as notifications,
      to_regclass(format('%I.tidings_bell', n.nspname)) as bell,
      coalesce(
        to_regprocedure(
          format('%I.tidings_prune_batch(interval, bigint, integer, interval)', n.nspname)
        ),
        -- Where V30 hasn't been applied yet.
        to_regprocedure(format('%I.tidings_prune_batch(interval, bigint, integer)', n.nspname))
      ) as prune_batch,
      pg_catalog.hashtextextended('tidings migrate ' || n.nspname, 0) as migration,
      (
        select c.relowner
        from pg_catalog.pg_class as c
        where c.relnamespace = n.oid and c.relname = 'tidings_schema_history'
      ) as owner
    from pg_catalog.pg_namespace as n
    where n.nspname = $1
  ),
  held as (
    select
      case
        when k.objsubid = 1 then 'migration'
        when k.classid = 1953064041 then 'bell'
        when k.classid = 1953064038 then 'feed'
        else 'prune'
      end as lock,
      k.pid,
      k.virtualtransaction,
      place.*
    from place
    join pg_catalog.pg_locks as k
      on
        (
          k.objsubid = 2
          and k.classid in (1953064038, 1953064041, 1953064048)
          and k.objid = place.notifications
        )
        or (
          k.objsubid = 1
          and (k.classid::bigint << 32 | k.objid::bigint) = place.migration
        )
    where
      k.locktype = 'advisory'
      and k.granted
      and k.pid is distinct from pg_backend_pid()
      and k.database = (select oid from pg_catalog.pg_database where datname = current_database())
  )
select
  held.lock,
  case
    when held.pid is not null then format(
      'backend %s (%s)',
      held.pid,
      concat_ws(
        ', ',
        r.rolname,
        nullif(a.application_name, ''),
        'connected since ' || date_trunc('second', a.backend_start)
      )
    )
    else format('the prepared transaction %L (%s)', p.gid, p.owner)
  end as what,
  case
    when held.pid is not null then format('select pg_terminate_backend(%s);', held.pid)
    else format('rollback prepared %L;', p.gid)
  end as fix
from held
left join pg_catalog.pg_stat_activity as a on a.pid = held.pid
-- A prepared transaction has no session but holds a lock on its own id.
left join pg_catalog.pg_locks as own
  on
    held.pid is null
    and own.pid is null
    and own.locktype = 'transactionid'
    and own.virtualtransaction = held.virtualtransaction
left join pg_catalog.pg_prepared_xacts as p on p.transaction = own.transactionid
left join pg_catalog.pg_roles as r on r.oid = coalesce(a.usesysid, to_regrole(quote_ident(p.owner)))
where
  r.oid is not null
  and case
    when held.lock in ('bell', 'feed') then
      not coalesce(has_sequence_privilege(r.oid, held.bell, 'update'), false)
    when held.lock = 'prune' then
      not coalesce(has_function_privilege(r.oid, held.prune_batch, 'execute'), false)
    else not coalesce(pg_has_role(r.oid, held.owner, 'member'), false)
  end
order by held.lock, held.pid
limit 10
