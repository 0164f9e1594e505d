-- Before which transaction nothing of a user's is left to deliver: it was sent,
-- or it has expired.
--
-- Which rows are unsent stands in the rows alone, since an index on it would
-- make every mark an entry in every index. Whoever looks for a user's unsent
-- rows begins here instead of at the oldest row that is kept. The bridges move
-- it on; where it is behind or missing, looking takes longer and finds the same.
create table :"schema".tidings_drained (
  user_id text primary key,
  xid xid8 not null,
  -- Transaction ids mean nothing in another cluster: what a dump brought from
  -- one is void.
  system_identifier bigint not null
) with (fillfactor = 50);

comment on table :"schema".tidings_drained is
  'Before which transaction nothing of a user''s is left to deliver (Tidings).';

-- Which transactions may have made earlier rows such as are to be delivered: took
-- marks away, put an end off, changed whose a row is. What tidings_drained says
-- counts only above all of them, so that it never hides such a row. Only the
-- youngest matters. Nothing in it is changed, so nobody waits here.
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

-- Once a statement, and not for the bridges, which say so in their sessions: a
-- trigger for each row would fetch every row that is marked once more.
create trigger tidings_reopen
before update of user_id, expires_at, sent_at, xid on :"schema".notifications
for each statement
when (current_setting('tidings.marking', true) is distinct from 'on')
execute function :"schema".tidings_reopen();
