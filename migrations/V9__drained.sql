-- The transaction below which a user has nothing left to deliver: everything was sent,
-- or has expired.
--
-- Only the rows themselves record what is unsent, since with an index on it, every mark
-- would add an entry to every index. A search for a user's unsent rows starts here
-- instead of at the oldest row kept. The bridges advance it; if it is behind or
-- missing, the search takes longer and finds the same rows.
create table :"schema".tidings_drained (
  user_id text primary key,
  xid xid8 not null,
  -- Transaction ids mean nothing in another cluster: values that a dump brought from
  -- one are void.
  system_identifier bigint not null
) with (fillfactor = 50);

comment on table :"schema".tidings_drained is
  'Before which transaction nothing of a user''s is left to deliver (Tidings).';

-- Transactions that may have made earlier rows deliverable again: they removed marks,
-- extended an expiry, or changed a row's user. A value in tidings_drained counts only
-- if it is above all of them, so that it never hides such a row. Only the newest
-- matters. Nothing in it is updated, so no writer waits here.
create table :"schema".tidings_reopened (
  xid xid8 primary key
);

comment on table :"schema".tidings_reopened is
  'Transactions that changed whether notifications are to be delivered (Tidings).';

create function :"schema".tidings_reopen() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into :"schema".tidings_reopened (xid) values (pg_current_xact_id()) on conflict do nothing;
  delete from :"schema".tidings_reopened
  where xid in (
    select r.xid
    from :"schema".tidings_reopened as r
    where r.xid < pg_current_xact_id()
    order by r.xid
    limit 10
    for update skip locked
  );
  return null;
end
$$;

revoke all on function :"schema".tidings_reopen() from public;

comment on function :"schema".tidings_reopen() is
  'Notes that notifications of before may have to be delivered (Tidings).';

-- Once per statement, and not for the bridges, which set a flag in their sessions: a
-- row-level trigger would fetch every marked row once more.
create trigger tidings_reopen
before update of user_id, expires_at, sent_at, xid on :"schema".notifications
for each statement
when (current_setting('tidings.marking', true) is distinct from 'on')
execute function :"schema".tidings_reopen();
