-- What the bridge needs to know of tidings_pruned, and all that it may read.
--
-- Null if nothing was removed. Stable, so that it uses the same snapshot as the page
-- that it is read with.
create function :"schema".tidings_pruned_through() returns xid8
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select xid from :"schema".tidings_pruned where only_row and xid > '0'
$$;

revoke all on function :"schema".tidings_pruned_through() from public;

comment on function :"schema".tidings_pruned_through() is
  'The youngest transaction of which notifications were removed, if any were (Tidings).';
