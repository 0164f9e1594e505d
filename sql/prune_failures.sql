-- Why rows could not be removed (V16__prune_failures.sql): the reasons, most frequent
-- first. Rows that will be retried at once, because what kept them has changed, are
-- left out; `obstacles` is computed as in tidings_prune_batch.
--
-- $1 the maximum number of rows read.
with
  now_there as materialized (
    select pg_catalog.hashtextextended(string_agg(o.version, ' ' order by o.version), 0) as obstacles
    from (
      select concat_ws('/', 'trigger', t.oid, t.xmin, p.xmin) as version
      from pg_catalog.pg_trigger as t
      join pg_catalog.pg_proc as p on p.oid = t.tgfoid
      where
        t.tgrelid = pg_catalog.to_regclass(pg_catalog.format('%I.notifications', :'schema'))
        and t.tgtype & 8 <> 0
        and t.tgenabled in ('O', 'A')
      union all
      select concat_ws('/', 'rule', r.oid, r.xmin)
      from pg_catalog.pg_rewrite as r
      where
        r.ev_class = pg_catalog.to_regclass(pg_catalog.format('%I.notifications', :'schema'))
        and r.ev_type = '4'
    ) as o
  )
select
  f."constraint",
  f.sqlstate,
  min(f.reason) as reason,
  count(*) as rows
from (
  select g."constraint", g.sqlstate, g.reason
  from :"schema".tidings_prune_failures as g
  where g.obstacles is not distinct from (select obstacles from now_there)
  limit $1
) as f
group by f."constraint", f.sqlstate
order by count(*) desc, reason
