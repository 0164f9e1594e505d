-- The table that the alternatives listen to: the same rows as Tidings' table without its internal
-- columns, and the trigger that every LISTEN and NOTIFY tutorial shows: one pg_notify per row, with
-- the row as payload.

create table notifications (
  id bigint generated always as identity primary key,
  user_id text not null,
  text text not null,
  created_at timestamptz not null default now()
);

-- For looking up what a client has missed.
create index on notifications (user_id, id);

create function notify_row() returns trigger language plpgsql as $$
begin
  perform pg_notify(
    'notifications',
    json_build_object('id', new.id, 'user_id', new.user_id, 'text', new.text)::text
  );
  return null;
end
$$;

create trigger notify_row after insert on notifications
for each row execute function notify_row();
