-- Sends the server's time to each user of the demo page and deletes old ticks. A tick
-- that is no longer current is useless: it expires before it is pruned.
--
-- $1 users.
with
  pruned as (
    delete from :"schema".notifications
    where
      user_id = any($1::text[])
      and event = 'clock'
      and created_at < now() - interval '10 seconds'
  )
insert into :"schema".notifications (user_id, event, text, expires_at)
select
  u.user_id,
  'clock',
  to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
  now() + interval '3 seconds'
from unnest($1::text[]) as u (user_id)
