-- The doorbell says "look", and nothing else: the rows come from the table.
--
-- One ring a statement, whatever its rows; equal rings in one transaction are
-- delivered as one. The channel carries the table's OID, so that two
-- installations in one database don't hear each other.
--
-- It runs with its owner's rights, so that an INSERT doesn't fail where the
-- writer may not call pg_notify.
create function :"schema".tidings_ring_doorbell() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_catalog.pg_notify('tidings_' || tg_relid::text, '');
  return null;
end
$$;

revoke all on function :"schema".tidings_ring_doorbell() from public;

comment on function :"schema".tidings_ring_doorbell() is
  'Tells the bridges that there are new notifications (Tidings).';

create trigger tidings_ring_doorbell
after insert on :"schema".notifications
for each statement
execute function :"schema".tidings_ring_doorbell();
