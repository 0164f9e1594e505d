-- The doorbell only means "check the table": the rows are read from the table.
--
-- One NOTIFY per statement, however many rows it inserts; Postgres merges equal
-- notifications of one transaction. The channel contains the table's OID, so that two
-- installations in one database don't receive each other's.
--
-- It runs with its owner's privileges, so that an INSERT doesn't fail where the writer
-- may not call pg_notify.
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
