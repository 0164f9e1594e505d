-- The columns that the pages have in common, of their rows `f`. Included by the variable
-- `columns`.
f.xid,
f.id,
f.event,
f.text,
f.ref,
f.created_at,
-- Not the difference of the two timestamps: one of them may be infinite. date_part, because
-- extract computes with numeric; and hardly any row expires.
case
  when f.expires_at is not null then
    date_part('epoch', f.expires_at) - date_part('epoch', clock_timestamp())
end as seconds_left
