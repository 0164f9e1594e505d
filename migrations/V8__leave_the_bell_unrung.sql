-- The bell is rung only when somebody sleeps.
--
-- NOTIFY takes a lock of the whole cluster at commit and holds it across the
-- flush, so writers that ring commit one at a time. A bridge that is awake
-- polls and needs no bell. To sleep, one takes the exclusive lock below on its
-- session; a writer that can't share it rings.
--
-- A writer that got it shared holds it until its rows are visible, and a bridge
-- falls asleep only when nobody does, then looks once more: so no row falls
-- between. A rollback to a savepoint gives the lock back together with the rows.
--
-- Equal rings in one transaction are delivered as one. The lock, like the
-- channel, carries the table's OID: two installations in one database don't
-- meddle with each other.
--
-- A transaction that has rung can't be prepared (two-phase commit), hence
-- `set local tidings.doorbell = off`: rows are found within a second then.
--
-- It is the same function, so that its owner and rights stay. A bridge of
-- before this file, which never sleeps by the lock, finds rows once a second
-- until it is replaced.
--
-- It keeps no search path: to set one and take it back costs each INSERT a tenth.
-- Instead all names in it are qualified, types and operators too, so that a
-- caller's path decides nothing.
create or replace function tidings_ring_doorbell() returns trigger
language plpgsql
security definer
as $$
declare
  nobody_sleeps boolean;
begin
  -- In a block that could fail, and so is a savepoint: the lock then belongs to
  -- what the rows belong to. Else it would to the cursor that happens to insert
  -- them, which may lose it to a rollback and keep the rows.
  begin
    -- 1953064041 is 'tidi' in ASCII. Another kind of key than those of one
    -- bigint, and than (table's OID, row's id), which applications use.
    nobody_sleeps := pg_catalog.pg_try_advisory_xact_lock_shared(
      1953064041, tg_relid::pg_catalog.int4
    );
  exception
    -- No room for one lock more is no reason to fail.
    when insufficient_resources then
      nobody_sleeps := false;
  end;
  if nobody_sleeps then
    return null;
  end if;
  if pg_catalog.current_setting('tidings.doorbell', true) operator(pg_catalog.=) 'off' then
    return null;
  end if;
  perform pg_catalog.pg_notify(pg_catalog.concat('tidings_', tg_relid), '');
  return null;
end
$$;

comment on function tidings_ring_doorbell() is
  'Tells the bridges that there are new notifications, if one of them sleeps (Tidings).';
