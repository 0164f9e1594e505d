-- The name of an event holds no control characters from now on. Operators look at rows
-- with psql, `tidings tail` and monitors, and a terminal executes what is in them: an
-- escape sequence sets its title, hides lines, or types an answer into the shell.
-- (`tidings` escapes them as well. A text may hold anything, line breaks above all, and
-- is escaped wherever it is shown.)
--
-- Rows that are there already stay as they are, are delivered, and are marked. A check that
-- isn't valid for them wouldn't do: Postgres checks each version of a row that an
-- UPDATE writes, whichever columns it sets, so their marks would fail. So the check passes
-- whatever has an id of before this migration. Ids, unlike `xid`, never change: rows that
-- are restored into another cluster get another `xid`, and keep their id.
--
-- `not valid`, as it holds for all rows by the way it is made: to look at each of them would keep
-- writers waiting.
--
-- [:cntrl:] depends on the collation; the range is C1, which some terminals execute too.
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
