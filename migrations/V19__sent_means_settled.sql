-- A row counts as sent once a connection that it was written to has stayed open for
-- TIDINGS_SETTLE (2 s), or its client has returned with a later last event id: a page
-- that is being unloaded receives rows that it never shows, and leaves them to the next
-- page. The bridge implements this; only the comments on the columns, which `\d+`
-- shows, change here.
comment on column :"schema".notifications.sent_at is
  'When it was written to a connection of its user; set by the bridge alone, once that connection has stayed open for TIDINGS_SETTLE or its client has returned with a later last event id.';
comment on column :"schema".notifications.sent is
  'Whether sent_at is set.';
