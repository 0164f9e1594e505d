-- From now on, the name of an event contains no control characters. Operators read rows
-- with psql, `tidings tail` and monitors, and a terminal interprets what they contain:
-- an escape sequence sets its title, hides lines, or types an answer into the shell.
-- (`tidings` escapes them as well. A text may contain anything, line breaks in
-- particular, and is escaped wherever it is shown.)
--
-- Existing rows stay as they are, are delivered, and are marked. A check that they
-- violate wouldn't work: Postgres checks each version of a row that an UPDATE writes,
-- whichever columns it sets, so marking them would fail. So the check passes every row
-- that has an id from before this migration. Ids, unlike `xid`, never change: rows that
-- are restored into another cluster get another `xid` and keep their id.
--
-- `not valid`, since it holds for all rows by construction: checking each of them would
-- block writers.
--
-- [:cntrl:] depends on the collation; the range is C1, which some terminals interpret
-- too.
comment on column :"schema".notifications.event is
  'Name of the browser event, printable; null means message.';

do $migration$
declare
  newest bigint;
begin
  -- Before the ids are looked at: no row is written in between. Held for milliseconds.
  lock table :"schema".notifications in access exclusive mode;

  -- The sequence, as a row may have got its id and not be written yet; the table, as an
  -- id may have been restored without the sequence.
  select
    greatest(
      (select pg_catalog.max(n.id) from :"schema".notifications as n),
      (
        select case when s.is_called then s.last_value else 0 end
        from :"schema".notifications_id_seq as s
      )
    )
  into newest;

  execute pg_catalog.format(
    'alter table %I.notifications add constraint notifications_event_printable '
      'check (id <= %s or event !~ %L) not valid',
    :'schema',
    newest,
    E'[[:cntrl:]\\u007f-\\u009f]'
  );
end
$migration$;
