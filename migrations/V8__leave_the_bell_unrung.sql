-- The bell is rung only when somebody sleeps.
--
-- NOTIFY takes a lock of the whole cluster at commit and holds it across the
-- flush, so writers that ring commit one at a time. A bridge that is awake
-- polls and needs no bell.
--
-- A sequence says which: it has a last value while writers are to ring, and none
-- (`is_called` is false) while they need not. What is written to a sequence is
-- seen by everybody at once and never rolled back, and to read it takes no lock
-- that writers could queue for: a few microseconds of an INSERT. The number itself
-- tells bridges one time of ringing from another.
--
-- Why no row falls between: a writer reads the sequence when its rows are in, so
-- while it holds the lock that every INSERT takes on the table, until its rows
-- are visible. A bridge has writers ring first, then waits until none of those
-- holds that lock who may not have, then looks once more.
create sequence :"schema".tidings_bell;

comment on sequence :"schema".tidings_bell is
  'Has a last value while a bridge sleeps, so that INSERTs ring the doorbell (Tidings).';

-- The trigger's condition is evaluated with the rights of whoever inserts.
grant select on sequence :"schema".tidings_bell to public;

-- Equal rings in one transaction are delivered as one. The channel carries the
-- table's OID: two installations in one database don't hear each other.
--
-- A transaction that has rung can't be prepared (two-phase commit), hence
-- `set local tidings.doorbell = off`: rows are found within a second then.
--
-- It is the same function, so that its owner and rights stay. It keeps no search
-- path, which would cost more than the rest of it: all names in it are qualified,
-- operators too, so that a caller's path decides nothing.
create or replace function :"schema".tidings_ring_doorbell() returns trigger
language plpgsql
security definer
as $$
begin
  if pg_catalog.current_setting('tidings.doorbell', true) operator(pg_catalog.=) 'off' then
    return null;
  end if;
  perform pg_catalog.pg_notify(pg_catalog.concat('tidings_', tg_relid), '');
  return null;
end
$$;

comment on function :"schema".tidings_ring_doorbell() is
  'Tells the bridges that there are new notifications (Tidings).';

-- As a condition, the sequence is read without a function being called.
--
-- A bridge of before this file, for which nobody rings, finds rows once a second
-- until it is replaced.
drop trigger tidings_ring_doorbell on :"schema".notifications;

create trigger tidings_ring_doorbell
after insert on :"schema".notifications
for each statement
when (pg_catalog.pg_sequence_last_value(:'"schema".tidings_bell'::regclass) is not null)
execute function :"schema".tidings_ring_doorbell();
