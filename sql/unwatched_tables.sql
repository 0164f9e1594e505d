-- Tables that a relation reads, or that it is, and on which no trigger of tidings_watch()
-- tells bridges of changes.
--
-- $1 schema, $2 the relation's qualified name. `fix` is null if it isn't obvious which
-- column names the user. Tidings' own table tells them by itself.
with recursive
  used (oid) as (
    select to_regclass($2)::oid
    union
    select d.refobjid
    from used as u
    join pg_rewrite as r on r.ev_class = u.oid
    join pg_depend as d
      on d.classid = 'pg_rewrite'::regclass
      and d.objid = r.oid
      and d.refclassid = 'pg_class'::regclass
      and d.refobjid <> u.oid
  )
select
  format('%I.%I', n.nspname, c.relname) as "table",
  case
    when
      exists (
        select
        from pg_attribute as a
        where a.attrelid = c.oid and a.attname = 'user_id' and not a.attisdropped
      )
    then
      format('select %I.tidings_watch(%L, ''user_id'');', $1, format('%I.%I', n.nspname, c.relname))
  end as fix
from used as u
join pg_class as c on c.oid = u.oid
join pg_namespace as n on n.oid = c.relnamespace
where
  c.relkind in ('r', 'p')
  and not (n.nspname = $1 and c.relname = 'topic_subscriptions')
  and not exists (
    select
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    join pg_namespace as ours on ours.oid = p.pronamespace
    where t.tgrelid = c.oid and ours.nspname = $1 and p.proname = 'tidings_watched'
  )
order by 1
