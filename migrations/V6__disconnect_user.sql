-- Streams that must end: those of a user, or those that a ticket opened.
--
-- The bridges read it once a second, like the tail of the table: by transaction, so
-- that rows that commit late aren't missed. Rows older than a day have been read by
-- every bridge and are removed when new ones are added.
create table :"schema".tidings_disconnections (
  id bigint generated always as identity primary key,
  user_id text not null,
  -- Null ends every stream of the user.
  ticket bytea,
  created_at timestamptz not null default now(),
  xid xid8 not null default pg_current_xact_id()
);

create index tidings_disconnections_xid on :"schema".tidings_disconnections (xid);
create index tidings_disconnections_created_at on :"schema".tidings_disconnections (created_at);

comment on table :"schema".tidings_disconnections is
  'Which streams the bridges are to end; written by disconnect_user and by removing tickets (Tidings).';
comment on column :"schema".tidings_disconnections.ticket is
  'Hash of the ticket whose streams end; null means every stream of the user.';

-- Disconnections that were written since a snapshot, for the bridges.
create function :"schema".tidings_disconnections_since(seen pg_snapshot)
returns table (user_id text, ticket bytea)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.user_id, d.ticket
  from :"schema".tidings_disconnections as d
  where d.xid >= pg_snapshot_xmin(seen)
    -- A row that was restored from another cluster may lie in the future.
    and d.xid < pg_snapshot_xmax(pg_current_snapshot())
    and not pg_visible_in_snapshot(d.xid, seen)
$$;

revoke all on function :"schema".tidings_disconnections_since(pg_snapshot) from public;

comment on function :"schema".tidings_disconnections_since(pg_snapshot) is
  'Which streams were to end since the snapshot; the bridges call it (Tidings).';

-- Ends every stream of a user and removes the user's tickets: for logout.
--
-- A token that the application has signed remains valid until it expires, so the
-- application must delete the cookie first.
create function :"schema".disconnect_user(user_id text) returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if disconnect_user.user_id is null then
    raise exception 'disconnect_user needs a user_id'
      using errcode = 'null_value_not_allowed';
  end if;
  delete from :"schema".tidings_disconnections
  where id in (
    select d.id
    from :"schema".tidings_disconnections as d
    where d.created_at < now() - interval '1 day'
    order by d.created_at
    limit 100
    for update skip locked
  );
  delete from :"schema".stream_tickets as t where t.user_id = disconnect_user.user_id;
  insert into :"schema".tidings_disconnections (user_id) values (disconnect_user.user_id);
end
$$;

-- For applications whose user ids are numbers.
create function :"schema".disconnect_user(user_id bigint) returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select :"schema".disconnect_user(disconnect_user.user_id::text)
$$;

revoke all on function :"schema".disconnect_user(text) from public;
revoke all on function :"schema".disconnect_user(bigint) from public;

comment on function :"schema".disconnect_user(text) is
  'Ends every stream of the user within seconds and removes the user''s tickets (Tidings).';
comment on function :"schema".disconnect_user(bigint) is
  'Ends every stream of the user within seconds and removes the user''s tickets (Tidings).';

-- Removing or changing a ticket ends the streams that it opened: if the ticket is still
-- valid, their clients reconnect and present it again.
create function :"schema".tidings_end_ticket_streams() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'TRUNCATE' then
    insert into :"schema".tidings_disconnections (user_id, ticket)
    select user_id, hash from :"schema".stream_tickets;
  else
    -- The streams of one that has expired have ended by themselves.
    insert into :"schema".tidings_disconnections (user_id, ticket)
    select user_id, hash from gone where expires_at > clock_timestamp();
  end if;
  return null;
end
$$;

revoke all on function :"schema".tidings_end_ticket_streams() from public;

comment on function :"schema".tidings_end_ticket_streams() is
  'Ends the streams that a removed or changed ticket opened (Tidings).';

create trigger tidings_end_streams_of_deleted
after delete on :"schema".stream_tickets
referencing old table as gone
for each statement
execute function :"schema".tidings_end_ticket_streams();

create trigger tidings_end_streams_of_changed
after update on :"schema".stream_tickets
referencing old table as gone
for each statement
execute function :"schema".tidings_end_ticket_streams();

create trigger tidings_end_streams_of_truncated
before truncate on :"schema".stream_tickets
for each statement
execute function :"schema".tidings_end_ticket_streams();
