-- The queue, the log and the source of truth: one row per notification.
--
-- fillfactor: every row is updated once, when it is marked as sent. Up to a thousand
-- rows are marked at a time, and with less than half of each page filled, all of these
-- updates stay heap-only (100 %, compared with 43 % at 70), so they touch no index.
--
-- sent_at is in no index and no predicate, for the same reason.
create table :"schema".notifications (
  id bigint generated always as identity primary key,
  user_id text not null,
  text text not null,
  event text,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  sent_at timestamptz,
  sent boolean generated always as (sent_at is not null) stored,
  -- The transaction that wrote the row. Ids are assigned before their rows become
  -- visible, so a reader tracks transactions instead.
  xid xid8 not null default pg_current_xact_id(),

  -- A reader's position counts rows of a transaction from 1.
  constraint notifications_id_positive check (id > 0),
  constraint notifications_user_id_length check (octet_length(user_id) between 1 and 255),
  constraint notifications_text_length check (octet_length(text) <= 1048576),
  constraint notifications_event_length check (octet_length(event) between 1 and 100),
  -- A line break would end the field, and the rest would be read as another field.
  constraint notifications_event_one_line check (event !~ '[\r\n]'),
  -- These would fire the page's own handlers, or pose as events of the bridge.
  constraint notifications_event_not_reserved check (
    event not in ('open', 'error') and event not like 'tidings.%'
  )
) with (fillfactor = 45);

-- For the bridge's own poll.
create index notifications_xid_id on :"schema".notifications (xid, id);

-- For the catch-up and resume of one user.
create index notifications_user_id_xid_id on :"schema".notifications (user_id, xid, id);

comment on table :"schema".notifications is
  'Insert a row to notify a user: every browser that the user has open shows it (Tidings).';
comment on column :"schema".notifications.user_id is 'Whom it concerns, 1 to 255 bytes.';
comment on column :"schema".notifications.text is 'What it says, up to 1 MiB; may be JSON.';
comment on column :"schema".notifications.event is 'Name of the browser event; null means message.';
comment on column :"schema".notifications.expires_at is 'Not delivered after this.';
comment on column :"schema".notifications.sent_at is
  'When it was first written to a connection of its user; set by the bridge alone.';
comment on column :"schema".notifications.sent is 'Whether it was written to a connection of its user.';
comment on column :"schema".notifications.xid is
  'The transaction that wrote the row; set by its default alone.';
