-- Writes to disk what is in the log. An asynchronous commit may otherwise take 0.2 s to get
-- there, and no replica receives it before.
--
-- Any commit would do. This message has no content, and nothing reads it.
select
  set_config('synchronous_commit', 'local', true),
  pg_logical_emit_message(true, 'tidings', '')
