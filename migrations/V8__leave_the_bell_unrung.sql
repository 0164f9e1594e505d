-- Send NOTIFY only while a bridge is asleep.
--
-- NOTIFY takes a cluster-wide lock at commit and holds it across the flush, so writers
-- that ring commit one at a time. A bridge that is awake polls and needs no doorbell.
--
-- A sequence records which applies: it has a last value while writers must ring, and
-- none (`is_called` is false) while they need not. A write to a sequence is visible to
-- everyone at once and never rolled back, and reading it takes no lock that writers
-- could queue for: it costs an INSERT a few microseconds. The number itself
-- distinguishes one period of ringing from another.
--
-- Why no row is missed: a writer reads the sequence after its rows are inserted, so
-- while it holds the lock that every INSERT takes on the table until its rows are
-- visible. A bridge first makes writers ring, then waits until none of the writers that
-- may not ring holds that lock, then polls once more.
create sequence :"schema".tidings_bell;

comment on sequence :"schema".tidings_bell is
  'Has a last value while a bridge sleeps, so that INSERTs ring the doorbell (Tidings).';

-- The trigger's condition is evaluated with the privileges of the inserting role.
grant select on sequence :"schema".tidings_bell to public;

-- Postgres merges equal notifications of one transaction. The channel contains the
-- table's OID, so that two installations in one database don't receive each other's.
--
-- A transaction that has called NOTIFY can't be prepared (two-phase commit), hence `set
-- local tidings.doorbell = off`: its rows are then found within a second.
--
-- The existing function is replaced, so that its owner and privileges stay. It sets no
-- search path, which would cost more than the rest of it: all names in it are
-- qualified, including operators, so that the caller's path has no effect.
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

-- In the trigger's condition, the sequence is read without calling the trigger
-- function.
--
-- A bridge from before this migration, which gets no notifications then, finds rows
-- once a second until it is replaced.
drop trigger tidings_ring_doorbell on :"schema".notifications;

create trigger tidings_ring_doorbell
after insert on :"schema".notifications
for each statement
when (pg_catalog.pg_sequence_last_value(:'"schema".tidings_bell'::regclass) is not null)
execute function :"schema".tidings_ring_doorbell();
