-- What `tidings adopt` and tidings_watch() have created on tables of applications, before
-- notifications is removed: their INSERTs would fail.
--
-- $1 schema of Tidings. Found in the catalogs, since the list of adopted tables may have
-- been restored without the tables, or the other way round: by the name of the trigger,
-- and by what its function inserts into. The two functions of a table end alike.
-- `may_drop`: the role of this session can drop them.
select
  c.oid::regclass::text as "table",
  pg_get_userbyid(c.relowner)::text as owner,
  pg_has_role(session_user, c.relowner, 'usage')
    and pg_has_role(session_user, p.proowner, 'usage')
    and (m.oid is null or pg_has_role(session_user, m.proowner, 'usage')) as may_drop,
  array_remove(
    array[
      format('trigger %I on %s', t.tgname, c.oid::regclass),
      format('function %s', p.oid::regprocedure),
      case when m.oid is not null then format('function %s', m.oid::regprocedure) end
    ],
    null
  ) as objects
from pg_trigger as t
join pg_class as c on c.oid = t.tgrelid
join pg_proc as p on p.oid = t.tgfoid
left join pg_proc as m
  on
    m.pronamespace = p.pronamespace
    and p.proname like 'tidings\_copy\_%'
    and m.proname = 'tidings_mark_' || substr(p.proname, 14)
    and m.pronargs = 1 and m.proargtypes[0] = 'text[]'::regtype
where
  t.tgname = 'tidings_copy'
  and not t.tgisinternal
  and (
    strpos(p.prosrc, format('%I.notifications', $1)) > 0
    or strpos(p.prosrc, format('"%s".notifications', replace($1, '"', '""'))) > 0
  )
union all
select
  c.oid::regclass::text,
  pg_get_userbyid(c.relowner)::text,
  pg_has_role(session_user, c.relowner, 'usage'),
  array_agg(format('trigger %I on %s', t.tgname, c.oid::regclass) order by t.tgname)
from pg_trigger as t
join pg_class as c on c.oid = t.tgrelid
join pg_proc as p on p.oid = t.tgfoid
where
  p.proname = 'tidings_watched'
  and p.pronamespace = (select n.oid from pg_namespace as n where n.nspname = $1)
  and not t.tgisinternal
group by c.oid
order by "table"
