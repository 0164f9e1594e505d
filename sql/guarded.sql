-- Whether the triggers that void drained floors fire in every session. Included by the
-- variable `guarded`.
select count(*) = 2
from pg_catalog.pg_trigger as t
where
  t.tgrelid = pg_catalog.to_regclass(pg_catalog.format('%I.notifications', :'schema'))
  and t.tgname in ('tidings_reopen', 'tidings_restamp')
  and t.tgenabled = 'A'
