-- The columns that the pages have in common, of their rows `f`. Included by the variable
-- `columns`.
f.xid,
f.id,
f.event,
f.text,
f.ref,
f.created_at,
-- Not the difference of the two timestamps: one of them may be infinite.
extract(epoch from f.expires_at)::float8 - extract(epoch from clock_timestamp())::float8
  as seconds_left
