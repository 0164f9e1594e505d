-- Reads the whole table, but writers don't wait for it. It has a file of its own because
-- V24 locks the table until its transaction ends.
--
-- The index must exist: without it, a page of a topic would read the whole table.
do $migration$
begin
  if not exists (
    select
    from pg_catalog.pg_index as i
    where
      i.indexrelid = pg_catalog.to_regclass(pg_catalog.format('%I.notifications_topic_xid_id', :'schema'))
      and i.indrelid = :'"schema".notifications'::regclass
      and i.indisvalid
  )
  then
    raise exception using
      errcode = 'object_not_in_prerequisite_state',
      message = 'the index notifications_topic_xid_id is missing or was not built to its end',
      hint = 'Run `tidings migrate`, which builds it without blocking writers.';
  end if;
end
$migration$;

alter table :"schema".notifications
  validate constraint notifications_one_addressee,
  validate constraint notifications_topic_form;
