-- The application's own key for a notification, such as the row of its own table that it
-- reports (`tidings adopt`). The JSON format of the stream carries it.
--
-- Only the catalog changes: no row is rewritten, and the constraint isn't checked against
-- existing rows while writers wait. V21 checks it.
alter table :"schema".notifications
  add column ref text,
  add constraint notifications_ref_length check (octet_length(ref) <= 255) not valid;

comment on column :"schema".notifications.ref is
  'The application''s own key for it, at most 255 bytes; part of the JSON format.';
