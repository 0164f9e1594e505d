-- Objects of the application that may reject or delay an UPDATE of
-- notifications.sent_at: triggers that fire on it, constraints that refer to it, and
-- constraints that existing rows need not satisfy but that every UPDATE checks.
--
-- $1 schema. `kind` is trigger or constraint.
with
  t as (
    select c.oid, c.relowner, c.relnamespace, format('%I.%I', nspname, relname) as name, a.attnum
    from pg_class as c
    join pg_namespace as n on n.oid = relnamespace
    join pg_attribute as a on attrelid = c.oid and attname = 'sent_at'
    where nspname = $1 and relname = 'notifications' and relkind = 'r'
  )
select
  'trigger' as kind,
  quote_ident(g.tgname) as name,
  t.name as "table",
  p.oid::regprocedure::text as function
from t
join pg_trigger as g on g.tgrelid = t.oid
join pg_proc as p on p.oid = g.tgfoid
where
  not g.tgisinternal
  and g.tgenabled in ('O', 'A')
  -- On UPDATE.
  and g.tgtype & 16 <> 0
  and (cardinality(g.tgattr::int2[]) = 0 or t.attnum = any (g.tgattr::int2[]))
  and not (
    p.pronamespace = t.relnamespace
    and p.proowner = t.relowner
    and p.proname like 'tidings\_%'
  )
union all
select 'constraint', quote_ident(k.conname), t.name, pg_get_constraintdef(k.oid)
from t
join pg_constraint as k on k.conrelid = t.oid
where
  k.contype = 'c'
  and (not k.convalidated or t.attnum = any (k.conkey))
  -- Our own constraint (V18), which every existing row satisfies by construction.
  and k.conname <> 'notifications_event_printable'
order by 1, 2
