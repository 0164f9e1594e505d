-- Tables of which some triggers of tidings_watch() are missing, disabled, or not ENABLE
-- ALWAYS (V27__watch.sql), with the call that creates them again.
--
-- $1 schema. A table that has none of the triggers is not known here.
select
  format('%I.%I', n.nspname, c.relname) as "table",
  array(
    select w.name
    from unnest(
      array[
        'tidings_watch_insert', 'tidings_watch_update', 'tidings_watch_delete',
        'tidings_watch_truncate'
      ]
    ) as w (name)
    where w.name <> all (found.firing)
  ) as missing,
  format(
    'select %I.tidings_watch(%L, %s);', $1, format('%I.%I', n.nspname, c.relname), found.arguments
  ) as fix
from (
  select
    t.tgrelid,
    array_agg(t.tgname::text) filter (where t.tgenabled = 'A') as firing,
    min(substring(pg_get_triggerdef(t.oid) from 'tidings_watched\((.*)\)$')) as arguments
  from pg_trigger as t
  join pg_proc as p on p.oid = t.tgfoid
  join pg_namespace as ours on ours.oid = p.pronamespace
  where ours.nspname = $1 and p.proname = 'tidings_watched' and not t.tgisinternal
  group by t.tgrelid
) as of_table
cross join lateral (
  select coalesce(of_table.firing, '{}') as firing, of_table.arguments
) as found
join pg_class as c on c.oid = of_table.tgrelid
join pg_namespace as n on n.oid = c.relnamespace
where cardinality(found.firing) < 4
order by 1
