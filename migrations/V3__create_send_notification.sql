-- Sends a notification from any SQL client.
--
-- It runs with its owner's privileges, so that a role can send without any privilege on
-- the table. A role that may call it may write to every user.
create function :"schema".send_notification(user_id text, text text, event text default null)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (user_id, text, event)
  values (send_notification.user_id, send_notification.text, send_notification.event)
  returning id
$$;

-- For applications whose user ids are numbers.
create function :"schema".send_notification(user_id bigint, text text, event text default null)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (user_id, text, event)
  values (send_notification.user_id::text, send_notification.text, send_notification.event)
  returning id
$$;

revoke all on function :"schema".send_notification(text, text, text) from public;
revoke all on function :"schema".send_notification(bigint, text, text) from public;

comment on function :"schema".send_notification(text, text, text) is
  'Notifies a user and returns the notification''s id (Tidings).';
comment on function :"schema".send_notification(bigint, text, text) is
  'Notifies a user and returns the notification''s id (Tidings).';
